"""Models that can be asked for by name. None of them could be fetched where this table was written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """One published model.

    Attributes:
        repository: on the Hugging Face hub.
        pipeline: its class in diffusers, which says how it is called.
        licence: as its card names it.
        image_size: height and width in pixels that it was trained on.
        millions: parameters of its denoiser.
        scale: classifier-free guidance scale that its pipeline samples with; more suits SDS.
        revision: a commit to pin, empty for the newest; the manifest records which one was used.
        gated: its terms must be accepted on the hub first.
        mirrors: other repositories that are known to hold it.
        note: what to know.
    """

    repository: str
    pipeline: str
    licence: str
    image_size: int
    millions: int
    scale: float
    revision: str = ""
    gated: bool = False
    mirrors: tuple[str, ...] = ()
    note: str = ""


MODELS: dict[str, Model] = {}
