"""Checks of what the parts of a run give in a step, so that what is wrong is said in one line, as early as possible."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from numbers import Real

import torch
from torch import Tensor

from distill.contracts import Condition, Guidance, Prior, Render

#: How the names of penalties begin that compare with known views rather than ask the scene; a step may be without them.
KNOWN = ("reference_", "start_")


def check_render(
    render: object, size: tuple[int, int, int], penalties: Collection[str] = (), *, normals: bool = False
) -> None:
    """Check what a scene renders.

    Args:
        render: what it returned.
        size: number of cameras, height and width that it was asked for.
        penalties: names of those that it was asked for.
        normals: they were asked for.

    Raises:
        ValueError: it is no ``Render``, a picture has another shape, or the penalties are others than asked for or no scalars.
    """
    if not isinstance(render, Render):
        raise ValueError(f"a scene must render a distill.contracts.Render, got {type(render).__name__}")
    for name, channels in (("rgb", 3), ("opacity", 1), ("depth", 1), ("normal", 3)):
        value = getattr(render, name)
        if name == "normal" and value is None and not normals:
            continue
        shape = [*size, channels]
        if not isinstance(value, Tensor) or list(value.shape) != shape:
            got = str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the {name} of a scene's Render must be of shape {shape}, one picture for each camera, got {got}"
            )
    missing = [name for name in penalties if name not in render.penalties and not name.startswith(KNOWN)]
    if missing:
        raise ValueError(
            f"the scene names the penalty {missing[0]} in its features, and its render does not return it; add it to the penalties of its Render"
        )
    for name, value in render.penalties.items():
        if name not in penalties:
            raise ValueError(
                f"the scene's render returned the penalty {name}, which was not asked for; return those that its argument penalties names"
            )
        if not isinstance(value, Tensor) or value.shape:
            got = str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the penalty {name} of a scene must be a tensor of shape [], got {got}; take its mean"
            )


def check_traced(x: Tensor) -> None:
    """Check that what a prior encodes of a scene's pictures follows from parameters.

    Raises:
        ValueError: it does not.
    """
    if not x.requires_grad:
        raise ValueError(
            "the scene's pictures have no gradient; render them from its parameters, and encode them, without detach() or torch.no_grad()"
        )


def gradient_of(
    guidance: Guidance, prior: Prior, x: Tensor, cond: Condition, t: Tensor, noise: Tensor
) -> Tensor:
    """Ask a loss for its gradient, and check what it returns; arguments as for ``Guidance``.

    Raises:
        ValueError: it returns no gradient of ``x``, changes what it is given, or differentiates where nothing is recorded.
    """
    try:
        with torch.no_grad(), unchanged("the loss", x, cond, t, noise):
            grad: object = guidance(prior, x, cond, t, noise)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        raise ValueError(
            "the loss differentiates, and is called without gradients: inside 'with torch.enable_grad():', begin with leaf = "
            "x.detach().requires_grad_(), as distill.guidance.terms.through_pixels does; the prior's predictions have no gradient"
        ) from error
    if not isinstance(grad, Tensor) or grad.shape != x.shape or not grad.is_floating_point():
        got = f"{list(grad.shape)} of {grad.dtype}" if isinstance(grad, Tensor) else type(grad).__name__
        raise ValueError(
            f"the loss must return dL/dx, a tensor of the shape of x, {list(x.shape)}, of floating-point numbers, got {got}"
        )
    return grad


def check_learnt(loss: object) -> float:
    """Check what a loss's ``learn`` returns, and return it as a number.

    Raises:
        ValueError: it is none.
    """
    if isinstance(loss, Real):
        return float(loss)
    raise ValueError(
        f"the learn of a loss must return a number, for the log, got {type(loss).__name__}; return float(...) of it"
    )


@contextmanager
def unchanged(what: str, x: Tensor, cond: Condition, t: Tensor, noise: Tensor) -> Iterator[None]:
    """Check that what happens within the context changes none of what a loss is given; of ``cond``, its embeddings and its source.

    Args:
        what: is called, for errors.
        x: pictures in the prior's space.
        cond: their condition.
        t: timesteps.
        noise: of the shape of ``x``.

    Raises:
        ValueError: something was changed in place.
    """
    given = {"x": x, "noise": noise, "t": t, "cond.source_x": cond.source_x} | {
        f"cond.prompts[{role!r}][{name!r}]": value
        for role, embedding in cond.prompts.items()
        for name, value in embedding.items()
    }
    # torch counts the changes of a tensor, and of what shares its memory.
    seen = {
        name: each for name, each in given.items() if isinstance(each, Tensor) and not each.is_inference()
    }
    before = [each._version for each in seen.values()]
    yield
    for (name, each), version in zip(seen.items(), before, strict=True):
        if each._version != version:
            raise ValueError(
                f"{what} changes {name} in place, which others use after it; work on a copy, such as {name}.clone()"
            )


@contextmanager
def drawing_nothing(what: str, device: torch.device, told: list[str]) -> Iterator[None]:
    """Note it if what happens within the context draws from torch's global generator of the CPU or of a CUDA device.

    Args:
        what: is called.
        device: of the prior.
        told: gets a line.
    """

    def states() -> list[Tensor]:
        found = [torch.get_rng_state()]
        return [*found, torch.cuda.get_rng_state(device)] if device.type == "cuda" else found

    before = states()
    yield
    if not all(map(torch.equal, before, states())):
        told.append(
            f"{what} draws random numbers from torch's global generator, so that seed= does not fix them and a resumed run differs; draw from "
            "the generator that it is given, and in a loss with distill.guidance.terms.further_noises"
        )
