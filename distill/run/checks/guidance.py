"""What a loss needs beside the prompt: a second prompt, or another prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distill.options import options_of, ramp


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


def check_second_prompts(values: Mapping[str, Any], loss: Callable[..., Any]) -> None:
    """Check that the losses have the prompts that they compare with.

    Raises:
        ValueError: one has none.
    """
    from distill import guidance

    if values["image"] and not values["prompt"].strip():
        return  # the picture's model knows no words
    known, own = guidance.available(), values["guidance"]
    terms = [term for term in own.get("terms") or () if term.get("prior") != "novel_view"]
    losses = [(loss, own), *((known[term["loss"]], term) for term in terms if term.get("loss") in known)]
    for each, options in losses:
        role, option = guidance.needed_prompt(each) or ("", None)
        if not role or values[f"{role}_prompt"].strip():
            continue
        value = options.get(option, getattr(options_of(each)(), option)) if option else 1
        if ramp(f"guidance.{option}", value, values["iterations"]).nonzero:
            what = each.__name__ + (f" with {option} coefficients" if option else "")
            raise ValueError(f'{what} needs a second prompt, and none is given; add {role}_prompt="..."')
