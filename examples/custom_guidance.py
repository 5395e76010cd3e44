"""A custom loss in one file, and an asset made with it.

Classifier score distillation uses only the difference between the predictions with the prompt and with the empty prompt; see
Yu et al. 2023, arXiv:2310.19415, Eq. 7. In a file of its name in ``guidance/``, the function is available everywhere as
``guidance=classifier_score``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import distill
from distill import guidance
from distill.contracts import Condition, Prior
from distill.guidance.terms import add_noise, predict, weight


@guidance.register
def classifier_score(
    prior: Prior,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    scale: float = 10.0,
    weighting: str = "sigma_squared",
) -> Tensor:
    """``w(t) s (e_c - e_u)``, shaped like ``x``: the direction that increases the prompt's likelihood."""
    text, uncond = predict(prior, add_noise(prior, x, t, noise), t, cond, "text", "uncond")
    return weight(prior, t, weighting) * scale * (text - uncond)


if __name__ == "__main__":
    options: dict[str, Any] = {"guidance": "classifier_score", "guidance.scale": 20.0}
    asset = distill.generate("a red mug", **options)
    print(asset.folder)
