"""Checks of scenes and priors of one's own, before a run trains with them."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from distill.cameras import turntable
from distill.contracts import Prior
from distill.files.errors import line_of

#: What a scene has beside what a torch module has.
SCENE = ("features", "parameter_groups", "update", "render", "field", "assets")
#: Keywords that ``render`` takes of a scene with a feature.
KEYWORDS = {"shading": ("shading",), "chunks": ("chunk_rays", "recompute"), "together": ("together",)}
#: Priors that were looked at.
_seen: list[weakref.ref[Any]] = []


def check_made(scene: Any) -> Any:
    """Check a scene that was made for a run, and return it.

    Raises:
        ValueError: it is no torch module, lacks a member of ``distill.contracts.Scene``, its ``render`` does not take what it is given, or
            it says that it fills space and has no field.
    """
    name = type(scene).__name__
    if not isinstance(scene, nn.Module):
        raise ValueError(f"a scene must be a torch.nn.Module with its parameters, got {name}")
    if missing := [member for member in SCENE if not hasattr(scene, member)]:
        raise ValueError(
            f"the scene {name} lacks {', '.join(missing)} of distill.contracts.Scene; define them"
        )
    made: Any = scene
    keywords = ["generator", "normals", "penalties"]
    keywords += [word for feature, words in KEYWORDS.items() if feature in made.features for word in words]
    try:
        inspect.signature(made.render).bind(None, 8, 8, **dict.fromkeys(keywords))
    except TypeError as error:
        raise ValueError(
            f"the render of the scene {name} must take (cameras, height, width) and the keywords {', '.join(keywords)}: {error}"
        ) from error
    if "volume" in made.features and made.field() is None:
        raise ValueError(
            f"the scene {name} says that it fills space (volume in its features), and its field() returns None; return its density and colour"
        )
    return scene


def lacking(prior: object) -> list[str]:
    """The members of ``distill.contracts.Prior`` that an object lacks; empty for a prior."""
    return [name for name in vars(Prior) if not name.startswith("_") and not hasattr(prior, name)]


def no_prior(given: object) -> str:
    """Say what an object is that was given as a prior and is none."""
    missing = lacking(given)
    partly = any(name not in missing for name in ("predict_noise", "embed", "alpha", "encode"))
    return type(given).__name__ + (
        f", which lacks {', '.join(missing)}; distill.priors.wrapped.wrap makes a prior of a function"
        if partly
        else ""
    )


def check_own_prior(prior: Prior, text: str, batch: int) -> None:
    """Check a caller's prior with one prediction, which changes no random numbers of the run; once, and none of distill's own.

    Args:
        prior: of the run.
        text: that it will be asked to embed.
        batch: pictures of a step, as many as an exported network may want.

    Raises:
        ValueError: its noise schedule, its embedding, what it encodes or its prediction is not as ``distill.contracts.Prior`` says.
    """
    from distill.priors.wrapped import Wrapped

    shipped = type(prior).__module__.partition(".")[0] == "distill" and not isinstance(prior, Wrapped)
    if shipped or any(each() is prior for each in _seen):
        return
    with torch.random.fork_rng([prior.device] if prior.device.type == "cuda" else []):
        _check_schedule(prior)
        _check_prediction(prior, text, batch)
    _seen[:] = [each for each in _seen if each() is not None]
    with suppress(TypeError):  # of a class with slots, which is looked at each time
        _seen.append(weakref.ref(prior))


def _check_schedule(prior: Prior) -> None:
    last = prior.num_timesteps - 1
    t = torch.tensor([0, last], device=prior.device)
    for name in ("alpha", "sigma"):
        try:
            value: object = getattr(prior, name)(t)
        except (IndexError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"{name} of the prior {prior.name} fails at the timesteps 0 and {last}, of num_timesteps={last + 1}: {line_of(error)}"
            ) from error
        if not isinstance(value, Tensor) or value.shape != (2, 1, 1, 1) or not value.isfinite().all():
            raise ValueError(
                f"{name} of the prior {prior.name} must be finite numbers of shape [batch, 1, 1, 1], got {_shown(value)} for 2 timesteps"
            )


def _embedded(prior: Prior, text: str, objects: int) -> dict[str, Tensor]:
    found: object = prior.embed([text, text])
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) and value.dim() and len(value) == 2 for value in found.values()):  # fmt: skip
        shown = (
            {name: _shown(value) for name, value in found.items()}
            if isinstance(found, Mapping)
            else _shown(found)
        )
        raise ValueError(
            f"embed of the prior {prior.name} must return a dictionary of tensors with a row for each prompt, got {shown} for 2 prompts"
        )
    return {name: value[:1].expand(objects * prior.views, *value.shape[1:]) for name, value in found.items()}


def _check_prediction(prior: Prior, text: str, batch: int) -> None:
    cond = _embedded(prior, text, batch // prior.views)
    picture = torch.full((batch, 3, prior.image_size, prior.image_size), 0.5, device=prior.device)
    with torch.no_grad():
        x: object = prior.encode(picture)
    if not isinstance(x, Tensor) or list(x.shape) != [batch, *prior.shape]:
        raise ValueError(
            f"encode of the prior {prior.name} must return its shape for each picture, {[batch, *prior.shape]}, got {_shown(x)} for pictures of "
            f"shape {list(picture.shape)}"
        )
    t = torch.full((len(x),), prior.num_timesteps // 2, device=prior.device)
    try:
        with torch.no_grad():
            found: object = prior.predict_noise(x, t, cond, turntable(len(x)).to(prior.device))
    except Exception as error:  # a prior of one's own fails in any way
        raise ValueError(
            f"predict_noise of the prior {prior.name} fails for pictures of its shape, {list(x.shape)}: {type(error).__name__}: {line_of(error)}"
        ) from error
    if not isinstance(found, Tensor) or found.shape != x.shape or not found.is_floating_point():
        raise ValueError(
            f"predict_noise of the prior {prior.name} must return noise of the shape of x_t, {list(x.shape)}, got {_shown(found)}"
        )


def _shown(value: object) -> str:
    return f"{list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
