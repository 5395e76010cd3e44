"""What a comparison is asked to make, looked at before anything is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from distill.run.folder.table import cut

#: Bytes that the name of a folder may have, on any usual file system.
LONGEST = 255
#: Characters that no folder's name has on one system or another.
FORBIDDEN = '/\\<>:"|?*'


def check_cells(methods: object, prompts: object, seeds: object = (0,)) -> None:
    """Refuse methods, prompts and seeds that make no cells, or one cell twice; without seeds, each prompt has one.

    Raises:
        ValueError: methods are no options by name, a name is none for a folder, prompts are no list of texts or seeds no list of
            integers, one of these comes twice, or there are none.
    """
    check_methods(methods)
    check_list("prompts", prompts, str, "a list of texts, such as ['a red mug']")
    check_list("seeds", seeds, int, "a list of integers, such as [0, 1]")


def check_methods(methods: object) -> None:
    """Refuse methods that are no options by name, and a name that is none for a folder.

    Raises:
        ValueError: there is one, or no method at all.
    """
    if not isinstance(methods, Mapping):
        raise ValueError(
            f"methods must be options by the name of a method, such as {{'sds': {{'guidance': 'sds'}}}}, got {said(methods)}"
        )
    if not methods:
        raise ValueError("a comparison needs at least one method, and methods is empty; leave it out for all")
    for name, options in methods.items():
        if not is_plain(name):
            raise ValueError(
                f"the name of a method is that of its folder, so it must be a text of at most {LONGEST} bytes, without spaces or a dot at its ends "
                f"and without {' '.join(FORBIDDEN)}, got {said(name)}; choose another"
            )
        if not isinstance(options, Mapping):
            raise ValueError(
                f"the options of the method {name} must be values by name, such as {{'guidance': 'sds'}}, got {said(options)}"
            )


def is_plain(name: object) -> bool:
    """Tell whether a name is one for a folder, in the folder where it is made, whatever the system."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and bool(name)
        and not set(name) & set(FORBIDDEN)
        and name == name.strip(" .")
        and len(name.encode()) <= LONGEST
    )


def check_list(name: str, values: object, kind: type, wanted: str) -> None:
    """Refuse what is no list of values of a kind, each once.

    Args:
        name: of the list.
        values: the list.
        kind: of its values.
        wanted: says what it must be, with an example.

    Raises:
        ValueError: it is not, or it is empty.
    """
    # A text is a sequence of its characters, and a bool is an integer.
    if (
        not isinstance(values, Sequence)
        or isinstance(values, (str, bytes))
        or any(not isinstance(each, kind) or isinstance(each, bool) for each in values)
    ):
        raise ValueError(f"{name} must be {wanted}, got {said(values)}")
    if not values:
        raise ValueError(f"{name} must be {wanted}, and is empty; name at least one")
    if twice := [value for value, times in Counter(values).items() if times > 1]:
        raise ValueError(f"{name} has {said(twice[0])} twice; leave one of them out")


def check_counts(**counts: object) -> None:
    """Refuse options, given by name, that are no integer of at least 1.

    Raises:
        ValueError: one is not.
    """
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {said(value)}")


def said(value: object) -> str:
    """A value as an error repeats it, in one line."""
    return cut(repr(value), 80)
