"""A draft of what a caption describes, shown to a UNet beside the noisy picture.

Where the features of a text encoder say linearly what the mean picture of a caption looks like, as those of the embedded priors do, a
linear layer makes a small picture of them. A UNet that is shown it need not find out from the words alone what is where: that is
decided at the noisiest timesteps, and takes it longest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

#: The folder, in a prior's, that holds a draft's weights and settings.
PART = "draft"
_WEIGHTS, _SETTINGS = "model.safetensors", "config.json"


class Draft(nn.Module):
    """A linear layer from the last token's features to a small picture.

    Args:
        width: of the features.
        channels: of the picture.
        size: its height and width, those of the UNet's input.
    """

    def __init__(self, width: int, channels: int, size: int) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        self.layer = nn.Linear(width, channels * size**2)

    def forward(self, states: Tensor) -> Tensor:
        """Map a text encoder's last hidden states, ``[batch, tokens, width]``, to ``[batch, channels, size, size]``."""
        made: Tensor = self.layer(states[:, -1].to(self.layer.weight.dtype))
        return made.unflatten(1, (self.channels, self.size, self.size))

    def beside(self, x: Tensor, states: Tensor) -> Tensor:
        """Add the draft's channels behind those of a picture ``[batch, channel, size, size]``."""
        made = self(states).to(x).contiguous(memory_format=torch.channels_last)
        return torch.cat([x, made], dim=1)

    def write(self, folder: Path) -> None:
        """Write weights in half precision and settings into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.half() for name, value in self.state_dict().items()}, folder / _WEIGHTS)
        said = {"width": self.layer.in_features, "channels": self.channels, "size": self.size}
        (folder / _SETTINGS).write_text(json.dumps(said, indent=2) + "\n")

    @classmethod
    def bare(cls, folder: Path) -> Draft:
        """Make a draft as the settings that ``write`` wrote say, without its weights."""
        return cls(**json.loads((folder / _SETTINGS).read_text()))

    @classmethod
    def read(cls, folder: Path) -> Draft:
        """Read what ``write`` wrote."""
        made = cls.bare(folder)
        made.load_state_dict({name: value.float() for name, value in load_file(folder / _WEIGHTS).items()})
        return made


def channels_of(network: Any) -> int:
    """Return how many channels a picture has that a network of diffusers takes, without those of a draft."""
    own = [each.channels for each in network.children() if isinstance(each, Draft)]
    return int(network.config.in_channels) - sum(own)


def show(network: nn.Module, draft: Draft) -> None:
    """Let a UNet be shown the draft of its text in every call; it takes so many channels more than a picture has."""

    def beside(
        module: nn.Module, given: tuple[Any, ...], told: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, *rest = given
        return (draft.beside(x, told["encoder_hidden_states"]), *rest), told

    network.add_module(PART, draft.eval().requires_grad_(False))
    network.register_forward_pre_hook(beside, with_kwargs=True)
