"""What a loss needs: a second prompt, another prior, coefficients that go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from distill.options import options_of, ramp, second_prompt
from distill.samplers.schedules import turns


def check_own_priors(values: Mapping[str, Any]) -> None:
    """Check the terms of a mixture that have a prior of their own.

    Raises:
        ValueError: a term names the model of an input picture where there is none or with a prompt, or another prior without.
    """
    for number, term in enumerate(values["guidance"].get("terms") or ()):
        where, own = f"guidance.terms[{number}]", term.get("prior")
        if own == "novel_view" and not values["image"]:
            raise ValueError(
                f"{where} names the model of an input picture, and there is none; add image=FILE, or leave out prior"
            )
        if own == "novel_view" and term.get("prompt"):
            raise ValueError(
                f"{where}: novel_view is conditioned on a picture and takes no prompt; leave out prompt"
            )
        if own not in (None, "novel_view") and not term.get("prompt"):
            raise ValueError(f'{where} has its own prior, which needs its own prompt; add prompt: "..."')


def check_sums(values: Mapping[str, Any], loss: Callable[..., Any]) -> None:
    """Check that options that must sum to 0, such as CSD's coefficients, do so throughout the run, also in a mixture.

    Raises:
        ValueError: they do not.
    """
    from distill import guidance

    for each, options, where, iterations in parts(values, loss):
        names = guidance.summing_to_zero(each)
        usual = options_of(each)()
        ramps = {
            name: ramp(f"{where}.{name}", options.get(name, getattr(usual, name)), iterations)
            for name in names
        }
        for point in turns(ramps):
            now = [value(point) for value in ramps.values()]
            if abs(sum(now)) > 1e-6:
                when = (
                    f" after {point:.0%} of the run; their schedules must begin and end together"
                    if point
                    else ""
                )
                raise ValueError(
                    f"{where}: {each.__name__}'s {', '.join(names)} must sum to 0, got {' + '.join(f'{round(value, 6) + 0.0:g}' for value in now)} = "
                    f"{sum(now):g}{when}"
                )


def parts(
    values: Mapping[str, Any], loss: Callable[..., Any]
) -> Iterator[tuple[Callable[..., Any], Mapping[str, Any], str, int | None]]:
    """The run's loss, and those of a mixture: each with its options, their group, and the iterations for schedules in steps."""
    from distill import guidance

    own, known = values["guidance"], guidance.available()
    yield loss, own, "guidance", values["iterations"]
    for number, term in enumerate(own.get("terms") or ()):
        if term.get("loss") in known:
            yield known[term["loss"]], term, f"guidance.terms[{number}]", None


def check_second_prompts(values: Mapping[str, Any], loss: Callable[..., Any]) -> None:
    """Check that the losses have the prompts that they compare with.

    Raises:
        ValueError: one has none.
    """
    if values["image"] and not values["prompt"].strip():
        return  # the picture's model knows no words
    for role, what in second_prompts(values, loss):
        if not values[f"{role}_prompt"].strip():
            raise ValueError(f'{what} needs a second prompt, and none is given; add {role}_prompt="..."')


def second_prompts(values: Mapping[str, Any], loss: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """The second prompts that the run's loss, and those of a mixture, need: the role of each, and what needs it, in words."""
    from distill import guidance

    for each, options, _, _ in parts(values, loss):
        role = second_prompt(each, options, values["iterations"])
        if role and options.get("prior") != "novel_view":
            _, option = guidance.needed_prompt(each) or ("", None)
            yield role, each.__name__ + (f" with {option} coefficients" if option else "")
