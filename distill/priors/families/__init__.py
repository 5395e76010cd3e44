"""Families of priors: a short file for each kind of pipeline, listed here by the name of its diffusers class."""

from __future__ import annotations

from distill.priors.families.family import Control, Family
from distill.priors.families.flux import FLUX
from distill.priors.families.pixart import PIXART_ALPHA, PIXART_SIGMA
from distill.priors.families.sana import SANA
from distill.priors.families.sd3 import SD3
from distill.priors.families.unet import DEEPFLOYD, PLAIN, STABLE_DIFFUSION, STABLE_DIFFUSION_XL

#: By ``_class_name`` in ``model_index.json``.
FAMILIES: dict[str, Family] = {
    "DiffusionPipeline": PLAIN,
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "LatentConsistencyModelPipeline": STABLE_DIFFUSION,
    # Stable Diffusion 2.1's parts and prompts, with a network that takes several views.
    "MVDreamPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": STABLE_DIFFUSION_XL,
    "IFPipeline": DEEPFLOYD,
    "PixArtAlphaPipeline": PIXART_ALPHA,
    "PixArtSigmaPipeline": PIXART_SIGMA,
    "StableDiffusion3Pipeline": SD3,
    "FluxPipeline": FLUX,
    "SanaPipeline": SANA,
}

__all__ = ["FAMILIES", "Control", "Family"]
