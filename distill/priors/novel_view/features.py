"""Image-encoder features: a token for the whole picture, and maps of several layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.files.errors import first_line

#: File beside an encoder's own with the weights of a ``TokenHead``.
TOKEN = "token.safetensors"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Features:
    """Features of a batch of pictures.

    Attributes:
        token: of the whole picture: the class token after the last norm (DINOv2), what a ``TokenHead`` makes of the
            patches, or the projected embedding (CLIP); shape ``[batch, width]``.
        maps: patch tokens of the chosen layers side by side, shape ``[batch, patches, layers * width]``.
    """

    token: Tensor
    maps: Tensor


class TokenHead(nn.Module):
    """A token for the whole picture, made of the last layer's patches in their places, in place of the class token.

    Args:
        width: of the patches, and of the token.
        grid: patches along each side.
        patch_width: numbers that each patch is projected to.
        hidden: width of the layer between.
    """

    def __init__(self, width: int, grid: int, patch_width: int = 16, hidden: int = 256) -> None:
        super().__init__()
        self.projection = nn.Linear(width, patch_width)
        self.layers = nn.Sequential(
            nn.Linear(grid**2 * patch_width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Shape ``[batch, patches, width]`` to ``[batch, width]``."""
        even = nn.functional.layer_norm(patches, patches.shape[-1:])
        token: Tensor = self.layers(self.projection(even).flatten(1))
        return token

    @classmethod
    def of(cls, weights: dict[str, Tensor], width: int, grid: int) -> TokenHead:
        """The head that some weights are of.

        Raises:
            ValueError: they are of no such head, or of one for other patches.
        """
        try:
            patch, hidden = len(weights["projection.weight"]), len(weights["layers.0.weight"])
            head = cls(width, grid, patch, hidden)
            head.load_state_dict(weights)
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"expected a token's weights for {grid} x {grid} patches of {width} numbers, got others: "
                f"{' '.join(str(error).split())[:120]}"
            ) from error
        return head


@dataclass(frozen=True)
class Encoder:
    """A frozen image encoder of transformers with its preprocessing.

    Attributes:
        model: ``Dinov2Model``, ``Dinov2WithRegistersModel``, ``CLIPVisionModelWithProjection`` or the embedded
            judge's ``ImageTower``.
        layers: indices into its hidden states, of which 0 is the patch embedding's.
        mean: of each channel.
        std: of each channel.
        id: says which weights these are: the folder's name and a hash of its files.
        head: makes the token in place of the class token, or None.
    """

    model: Any
    layers: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    id: str
    head: TokenHead | None = None

    @property
    def size(self) -> int:
        """Height and width of the pictures it takes, pixels."""
        return int(self.model.config.image_size)

    @property
    def token_width(self) -> int:
        config = self.model.config
        return int(getattr(config, "projection_dim", None) or config.hidden_size)

    def width_of(self, layer: int) -> int:
        """Channels of a layer's hidden states; those of the judge differ."""
        config = self.model.config
        widths = getattr(config, "hidden_sizes", None)
        return int(widths[layer] if widths else config.hidden_size)

    @property
    def map_widths(self) -> tuple[int, ...]:
        """Width of each layer of the maps."""
        return tuple(map(self.width_of, self.layers))

    @property
    def map_width(self) -> int:
        return sum(self.map_widths)

    @property
    def grid(self) -> int:
        """Patches along each side."""
        return self.size // int(self.model.config.patch_size)

    @property
    def prefix(self) -> int:
        """Tokens before the patches': the class token and the registers."""
        return 1 + int(getattr(self.model.config, "num_register_tokens", 0) or 0)

    def preprocess(self, rgb: Tensor) -> Tensor:
        """Resize whole pictures in [0, 1], never cropped, and normalise them."""
        if rgb.shape[-2:] != (self.size, self.size):
            rgb = nn.functional.interpolate(
                rgb, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 1)
        mean, std = (rgb.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (rgb - mean) / std

    @torch.no_grad()
    def __call__(self, rgb: Tensor) -> Features:
        """Encode pictures in [0, 1], shape ``[batch, 3, height, width]``."""
        pixels = self.preprocess(rgb).to(next(self.model.parameters()).dtype)
        out = self.model(pixel_values=pixels, output_hidden_states=True)
        norm = getattr(self.model, "layernorm", None)  # DINOv2's; each layer is seen through it
        states = [out.hidden_states[layer] for layer in self.layers]
        maps = [(norm(s) if norm else s)[:, self.prefix :] for s in states]
        if self.head is not None:
            token = self.head(out.last_hidden_state[:, self.prefix :])
        else:
            token = out.image_embeds if hasattr(out, "image_embeds") else out.last_hidden_state[:, 0]
        none = token.new_zeros(len(token), self.grid**2, 0)
        return Features(token.float(), torch.cat([none, *maps], dim=-1).float())

    def save(self, folder: Path) -> None:
        """Write the files that ``load_encoder`` reads."""
        self.model.save_pretrained(folder)
        processor = {"image_mean": list(self.mean), "image_std": list(self.std)}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        if self.head is not None:
            dtype = next(self.model.parameters()).dtype
            weights = {
                name: value.to(dtype).contiguous().cpu() for name, value in self.head.state_dict().items()
            }
            save_file(weights, folder / TOKEN)


def spread_layers(depth: int) -> tuple[int, ...]:
    """Four evenly spaced layers, shallow to deep, the last included: 6, 12, 18 and 24 of 24."""
    return tuple(round(depth * (i + 1) / 4) for i in range(4))


def load_encoder(
    folder: str | Path,
    *,
    layers: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Encoder:
    """Load a DINOv2 (with or without registers) or CLIP vision model from a folder of transformers.

    A DINOv2's class token gives way to a ``TokenHead``'s where the folder has one, ``token.safetensors``.

    Args:
        folder: with ``config.json`` and safetensors; nothing is fetched.
        layers: of the maps; by default four, evenly spaced; an empty list for no maps.
        device: where it lies.
        dtype: what it computes in.

    Raises:
        ValueError: the folder holds no such model, or a layer is not there.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = Path(folder)
    kinds = {
        "dinov2": ("Dinov2Model", IMAGENET),
        "dinov2_with_registers": ("Dinov2WithRegistersModel", IMAGENET),
        "clip_vision_model": ("CLIPVisionModelWithProjection", CLIP),
        "clip": ("CLIPVisionModelWithProjection", CLIP),
    }
    model: Any
    if (folder / "judge.safetensors").exists():
        from distill.embedded.judge import ImageTower, load_judge

        model, mean, std = ImageTower(load_judge(folder=folder)), (0.5,) * 3, (0.25,) * 3
        return _encoder(model.to(dtype), folder, layers, mean, std, device)
    try:
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        name, (mean, std) = kinds[kind]
    except (OSError, ValueError, KeyError) as error:
        what = "no config.json" if isinstance(error, OSError) else "a config.json of something else"
        raise ValueError(
            f"encoder must be the folder of an image encoder of transformers ({', '.join(kinds)}), and {folder} has {what}"
        ) from error
    processor = folder / "preprocessor_config.json"
    if processor.exists():
        said = json.loads(processor.read_text())
        mean, std = tuple(said.get("image_mean", mean)), tuple(said.get("image_std", std))
    try:
        model, told = getattr(transformers, name).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"could not load the encoder in {folder}: {first_line(error)}") from error
    if missing := sorted(told["missing_keys"]):  # transformers would make them up
        raise ValueError(
            f"the encoder in {folder} lacks {len(missing)} weights ({missing[0]}, ...); save it again with transformers "
            f"{transformers.__version__}, or upgrade it to the version that wrote them"
        )
    encoder = _encoder(model.to(dtype), folder, layers, mean, std, device)
    if not (folder / TOKEN).exists():
        return encoder
    head = TokenHead.of(load_file(folder / TOKEN), encoder.model.config.hidden_size, encoder.grid)
    return replace(encoder, head=head.to(device, dtype).eval().requires_grad_(False))


def _encoder(
    model: Any,
    folder: Path,
    layers: Sequence[int] | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str,
) -> Encoder:
    depth = model.config.num_hidden_layers
    chosen = tuple(layers) if layers is not None else spread_layers(depth)
    if wrong := [layer for layer in chosen if not 0 <= layer <= depth]:
        raise ValueError(f"the encoder in {folder} has layers 0 to {depth}, got {wrong[0]}")
    model.to(device).eval().requires_grad_(False)
    return Encoder(model, chosen, mean, std, f"{folder.name}-{_digest(folder)}")


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
