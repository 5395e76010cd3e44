"""ControlNets: a prior that is told a picture besides the prompt, depth for example.

Source: Zhang et al. 2023, arXiv:2302.05543.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.priors.families import FAMILIES, Family
from distill.priors.source import Source, find_controlnet, variant_of

#: What an embedding calls the picture, ``[batch, 3, height, width]`` in [0, 1].
CONTROL = "control"
#: Settings that a ControlNet shares with the network that it was made for.
SHARED = (
    "in_channels",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "addition_embed_type",
)


@dataclass(frozen=True)
class ControlNet:
    """A ControlNet beside a prior's network.

    Attributes:
        network: of diffusers.
        scale: what it adds to the prior's features is multiplied by this.
        source: where it is from.
    """

    network: Any
    scale: float
    source: Source

    def beside(self, unet: Any, picture: Tensor) -> Callable[..., Any]:
        """Call a UNet with what the ControlNet makes of a picture added to its features; called as the UNet is."""

        def call(*asked: Any, **told: Any) -> Any:
            down, middle = self.network(
                *asked, controlnet_cond=picture, conditioning_scale=self.scale, return_dict=False, **told
            )
            return unet(
                *asked, down_block_additional_residuals=down, mid_block_additional_residual=middle, **told
            )

        return call


def load_controlnet(
    name: str | Path, scale: float, family: Family, unet: Any, shrink: int, **precision: Any
) -> ControlNet:
    """Load a frozen ControlNet, safetensors alone.

    Args:
        name: a folder in the diffusers layout, or ``owner/repository@revision`` on the hub.
        scale: see ``ControlNet``.
        family: of the prior.
        unet: the prior's network.
        shrink: pixels along each side that one place of the network's input stands for.
        **precision: for ``from_pretrained`` of diffusers.

    Raises:
        ValueError: there is none, or it was made for another network.
    """
    from diffusers import ControlNetModel

    if not family.controls:
        known = sorted({kind for kind, each in FAMILIES.items() if each.controls})
        raise ValueError(
            f"prior_options.controlnet works with {', '.join(known)}, and not with a {family.network} of another kind"
        )
    source = find_controlnet(name)
    said = json.loads((source.folder / "config.json").read_text())
    if said.get("_class_name") != "ControlNetModel" or said.get("global_pool_conditions"):
        raise ValueError(
            f"prior_options.controlnet must be a ControlNetModel whose picture counts place by place, and {name} is a "
            f"{said.get('_class_name')}{' that pools it' if said.get('global_pool_conditions') else ''}"
        )
    try:
        network = ControlNetModel.from_pretrained(
            source.folder,
            variant=variant_of(source.folder),
            use_safetensors=True,
            local_files_only=True,
            **precision,
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"could not load the ControlNet in {source.folder} (safetensors in the diffusers layout): "
            f"{str(error).splitlines()[0]}"
        ) from error
    own = {key: network.config.get(key) for key in SHARED}
    other = [key for key in SHARED if _plain(own[key]) != _plain(unet.config.get(key))]
    if other:
        raise ValueError(
            f"the ControlNet {name} was made for another network than this prior's: its {other[0]} is "
            f"{_plain(own[other[0]])}, and the prior's {_plain(unet.config.get(other[0]))}"
        )
    shrinks = 2 ** (len(network.config.conditioning_embedding_out_channels) - 1)
    if shrinks != shrink:
        raise ValueError(
            f"the ControlNet {name} makes pictures {shrinks} times smaller, and this prior {shrink} times"
        )
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return ControlNet(network, scale, source)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
