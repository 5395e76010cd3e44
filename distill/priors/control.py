"""ControlNets: a prior that is given a picture besides the prompt, depth for example.

Source: Zhang et al. 2023, arXiv:2302.05543.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.files.errors import first_line
from distill.priors.families import FAMILIES, Control, Family
from distill.priors.source import Source, find_controlnet, variant_of

if TYPE_CHECKING:
    from diffusers import ModelMixin

#: What an embedding calls what the ControlNet is shown, the batch first; see ``DiffusionPrior.show``.
CONTROL = "control"


@dataclass(frozen=True)
class ControlNet:
    """A ControlNet beside a prior's network.

    Attributes:
        network: of diffusers.
        kind: how it is called.
        scale: what it adds to the prior's features is multiplied by this.
        source: where it is from.
    """

    network: ModelMixin
    kind: Control
    scale: float
    source: Source

    def describe(self) -> dict[str, Any]:
        """Describe it for a manifest: its source and its scale."""
        return {**self.source.describe(), "scale": self.scale}

    def beside(
        self, network: ModelMixin, x_t: Tensor, time: Tensor, cond: Mapping[str, Any], shown: Tensor
    ) -> dict[str, Any]:
        """An embedding with what the ControlNet makes of what it is shown, for the prior's network."""
        told = {**cond, "controlnet_cond": shown, "conditioning_scale": self.scale}
        return {**cond, **self.kind.add(self.network, network, x_t, time, told)}


def find_kind(name: str | Path, family: Family) -> tuple[Source, Control]:
    """Find a family's ControlNet class and how it is called.

    Args:
        name: a folder in the diffusers layout, or ``owner/repository@revision`` on the hub.
        family: of the prior.

    Raises:
        ValueError: there is none, or it is of another kind.
    """
    if family.control is None:
        known = sorted({kind for kind, each in FAMILIES.items() if each.control})
        raise ValueError(
            f"prior_options.controlnet works with {', '.join(known)}, and not with a {family.network} of another kind"
        )
    kind, source = family.control, find_controlnet(name)
    said = json.loads((source.folder / "config.json").read_text())
    what = [word for setting, word in kind.refused.items() if said.get(setting)]
    if said.get("_class_name") != kind.network or what:
        raise ValueError(
            f"prior_options.controlnet must be a {kind.network} that is shown one picture, place by place, and {name} is a "
            f"{' '.join([str(said.get('_class_name')), *what])}"
        )
    return source, kind


def load_controlnet(
    name: str | Path, scale: float, family: Family, network: ModelMixin, factor: int, **precision: Any
) -> ControlNet:
    """Load a frozen ControlNet, safetensors alone.

    Args:
        name: a folder in the diffusers layout, or ``owner/repository@revision`` on the hub.
        scale: see ``ControlNet``.
        family: of the prior.
        network: the prior's.
        factor: spatial downsampling factor from pictures to the prior's input.
        **precision: for ``from_pretrained`` of diffusers.

    Raises:
        ValueError: there is none, or it was made for another network.
    """
    import diffusers

    source, kind = find_kind(name, family)
    try:
        made = getattr(diffusers, kind.network).from_pretrained(
            source.folder,
            variant=variant_of(source.folder),
            use_safetensors=True,
            local_files_only=True,
            **precision,
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"could not load the ControlNet in {source.folder} (safetensors in the diffusers layout): "
            f"{first_line(error)}"
        ) from error
    own = {key: made.config.get(key) for key in kind.shared}
    other = [key for key in kind.shared if _plain(own[key]) != _plain(network.config.get(key))]
    if other:
        raise ValueError(
            f"the ControlNet {name} was made for another network than this prior's: its {other[0]} is "
            f"{_plain(own[other[0]])}, and the prior's {_plain(network.config.get(other[0]))}"
        )
    widths = made.config.get("conditioning_embedding_out_channels")
    if widths and 2 ** (len(widths) - 1) != factor:
        raise ValueError(
            f"the ControlNet {name} makes pictures {2 ** (len(widths) - 1)} times smaller, and this prior {factor} times"
        )
    made.eval().requires_grad_(False)
    if family.channels_last:
        made.to(memory_format=torch.channels_last)
    return ControlNet(made, kind, scale, source)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
