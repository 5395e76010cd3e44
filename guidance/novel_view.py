"""Any loss through a novel-view model: what the object in a picture looks like from where the scene is seen."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from distill.contracts import Condition, Prior
from distill.guidance.mix import Term


def novel_view(
    prior: Prior,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    through: str = "sds",
    scale: float = 3.0,
    options: Mapping[str, Any] | None = None,
) -> Tensor:
    r"""A loss whose model is told the input picture and each camera's pose relative to it.

    .. math:: g = w(t) \, \big(\hat\epsilon_s(x_t; y, \Delta) - \epsilon\big) \quad\text{for } \texttt{through=sds}

    where y is the picture and :math:`\Delta` the pose.

    Args:
        prior: the run's own; the model itself where there is no prompt, else one whose pictures it is shown.
        x: clean pictures in the prior's space, shape ``[batch, channel, height, width]``.
        cond: with ``seen``, the model that has looked at the picture, and ``cameras``.
        t: timesteps, shape ``[batch]``.
        noise: same shape as ``x``.
        through: name of a loss that is a function of these five: ``sds``, ``csd``, ``asd``, ``ism``, ...
        scale: of classifier-free guidance, for losses that have one.
        options: of that loss, besides its scale.

    Returns:
        dL/dx, same shape as ``x``, detached, not averaged over the batch.

    Raises:
        ValueError: there is no picture, or the loss is not one that can be used so.

    Source: Liu et al. 2023 (Zero-1-to-3), arXiv:2303.11328, Sec. 3.3, for SDS.
    """
    from distill.guidance import available

    if cond.seen is None or cond.cameras is None:
        raise ValueError("guidance=novel_view needs a picture; add image=FILE")
    losses = available()
    if through not in losses or through in ("mix", "vsd", "dds", "novel_view"):
        raise ValueError(f"through must be a loss such as sds, csd, asd or ism, got {through!r}")
    given = {"scale": scale} if "scale" in inspect.signature(losses[through]).parameters else {}
    loss = partial(losses[through], **given, **(options or {}))
    if cond.seen is prior:
        return loss(prior, x, cond, t, noise)
    return Term(loss, lambda progress: 1.0, cond.seen, cond.seen.condition)(prior, x, cond, t, noise)
