"""The judges: independent image-text models that recognise kinds and real objects in pictures.

It measures and never guides, and with ``keep=best`` it chooses among finished assets: its architecture, its pictures and its weights are not the prior's. Two towers
map pictures and captions to one sphere, trained by contrast as in CLIP (Radford et al. 2021,
arXiv:2103.00020); ``examples/embedded/train_judge.py`` makes the weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from distill.embedded import captions, world
from distill.embedded.captions import words
from distill.files.errors import line_of

#: Height and width of the pictures that the judge looks at; others are resized.
SIZE = 64
WIDTH = 128
CHANNELS = (48, 96, 192)
#: Residual layers at 16x16, 8x8 and 4x4.
DEPTHS = (1, 1, 2)
#: The folders of the bundled judges, by the value of ``judge=``: of the sixteen kinds, and of these and real objects.
SHIPPED = {
    "embedded": Path(__file__).with_suffix(""),
    "things": Path(__file__).with_name("things") / "judge",
}


class Residual(nn.Module):
    """``x + relu(norm(conv(x)))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


def _shrink(inner: int, outer: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inner, outer, kernel, stride, padding=(kernel - stride) // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer), nn.ReLU())


def _image_tower(channels: tuple[int, int, int], depths: tuple[int, int, int]) -> nn.Sequential:
    """A small residual net, 64x64 to 16x16, 8x8 and 4x4.

    With 48, 96 and 192 channels and one, one and two residual layers it takes 20 million multiplications a picture.
    """
    layers: list[nn.Module] = []
    for inner, outer, depth in zip((3, *channels), channels, depths, strict=False):
        layers.append(_shrink(inner, outer, 2, 2) if layers else _shrink(inner, outer, 6, 4))
        layers += [Residual(outer) for _ in range(depth)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels[-1], WIDTH))


def vocabulary() -> list[str]:
    """Every word of the captions of kinds and real objects, sorted; a word's index here is one less than its number."""
    pairs = [("mug", colour, view) for colour in world.COLOURS for view in world.VIEWS]
    phrasings = [
        captions.write(*said, template)
        for said in [*pairs, ("scissors", "red", None)]  # what is plural has "are"
        for template in range(len(world.TEMPLATES))
    ]
    return sorted({word for text in [*phrasings, *captions.all_captions()] for word in words(text)})


class Judge(nn.Module):
    """Two towers on one sphere; ``log_scale`` is the logarithm of the learnt inverse temperature of their contrast.

    Args:
        vocabulary: the words that it reads.
        channels: of the image tower, at 16x16, 8x8 and 4x4.
        depths: how many residual layers it has there.
    """

    def __init__(
        self,
        vocabulary: list[str],
        channels: tuple[int, int, int] = CHANNELS,
        depths: tuple[int, int, int] = DEPTHS,
    ) -> None:
        super().__init__()
        self.vocabulary, self.channels, self.depths = vocabulary, channels, depths
        self.number = {word: index + 1 for index, word in enumerate(vocabulary)}
        self.image_tower = _image_tower(channels, depths)
        self.embedding = nn.Embedding(len(vocabulary) + 1, WIDTH, padding_idx=0)
        self.reader = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.text_head = nn.Linear(WIDTH, WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def image_features(self, images: Tensor) -> Tensor:
        """Map pictures in [0, 1], ``[batch, 3, height, width]``, to unit vectors ``[batch, 128]``."""
        if images.shape[-2:] != (SIZE, SIZE):
            images = interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        return normalize(self.image_tower(images.clamp(0, 1) * 4 - 2), dim=-1)

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Map captions to unit vectors ``[captions, 128]``.

        Raises:
            ValueError: a caption is empty or has a word that is not in the vocabulary.
        """
        rows = [words(caption) for caption in captions]
        unknown = [word for row in rows for word in row if word not in self.number]
        if unknown or not all(rows):
            what = f"know {unknown[0]!r}" if unknown else "read an empty caption"
            known = f"the {len(self.vocabulary)} words of the captions that it was trained on"
            raise ValueError(f"the judge does not {what}; it knows {known}")
        lengths = [len(row) for row in rows]
        numbers = [[self.number[word] for word in row] + [0] * (max(lengths) - len(row)) for row in rows]
        states, _ = self.reader(self.embedding(torch.tensor(numbers, device=self.log_scale.device)))
        # The state after each caption's own last word, so that the padding behind it changes nothing.
        last = states[torch.arange(len(rows)), torch.tensor(lengths) - 1]
        return normalize(self.text_head(last), dim=-1)

    @torch.no_grad()
    def similarity(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine of each picture with each caption, ``[batch, captions]``; images as ``rank`` takes them.

        For a caption without a view, which is true of the mirror image too, it is the mean over a picture and its mirror image. One with a
        view is compared with the picture alone: what has a handle on one side is not turned round by a mirror.
        """
        images, read = images.to(self.log_scale.device), self.text_features(captions)
        plain, mirrored = (self.image_features(shown) @ read.T for shown in (images, images.flip(-1)))
        sided = [caption.lower().rstrip(" .").endswith(world.VIEWS) for caption in captions]
        return torch.where(torch.tensor(sided, device=read.device), plain, (plain + mirrored) / 2)

    def rank(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Order captions by how well they describe each picture, best first.

        Args:
            images: in [0, 1], shape ``[batch, 3, height, width]``.
            captions: candidates.

        Returns:
            Indices into ``captions``, shape ``[batch, captions]``.
        """
        return self.similarity(images, captions).argsort(dim=1, descending=True)


class ImageTower(nn.Module):
    """The judge's eye with the interface of transformers' vision models: the CLIP-like encoder of the embedded world.

    Hidden states are brought to a grid of 8 x 8 patches, behind one token that stands for their mean.
    """

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge
        levels = zip(judge.channels, judge.depths, strict=True)
        stages = [judge.channels[0], *(width for width, depth in levels for _ in range(depth))]
        self.config = SimpleNamespace(
            image_size=SIZE,
            patch_size=SIZE // 8,
            projection_dim=WIDTH,
            hidden_sizes=stages,
            num_hidden_layers=sum(judge.depths),
        )

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = True) -> Any:
        """Pictures ``4 rgb - 2`` to ``image_embeds`` ``[batch, 128]`` and ``hidden_states`` ``[batch, 65, stage]``."""
        x = pixel_values
        stages: list[Tensor] = []
        for layer in self.judge.image_tower:
            x = layer(x)
            # What halves the picture is no stage of its own, except for the stem.
            if isinstance(layer, Residual) or not stages:
                stages.append(x)
        grids = [interpolate(stage, (8, 8), mode="area").flatten(2).movedim(1, 2) for stage in stages]
        joined = tuple(torch.cat([grid.mean(1, keepdim=True), grid], dim=1) for grid in grids)
        return SimpleNamespace(image_embeds=x, hidden_states=joined)

    def save_pretrained(self, folder: Path) -> None:
        """Write the whole judge."""
        save_judge(self.judge, Path(folder))


def readable(judge: Judge) -> tuple[captions.Meaning, ...]:
    """What the captions say that a judge has words for: those of kinds and real objects, or of the kinds alone for one trained on these."""
    named = {name for name in captions.articles() if all(word in judge.number for word in words(name))}
    return tuple(meaning for meaning in captions.meanings() if meaning[0] in named)


def r_precision(
    judge: Judge, images: Tensor, prompt: str, among: Sequence[captions.Meaning] | None = None
) -> float:
    """Compute R-precision at 1: the share of pictures that are correct for a prompt, by the rule of ``distill.embedded.captions``.

    Args:
        judge: from ``load_judge``.
        images: in [0, 1], shape ``[batch, 3, height, width]``.
        prompt: says a name, and a colour or none, in any of the world's phrasings.
        among: what the captions to rank say; None for all that the judge has words for.

    Raises:
        ValueError: the prompt says none of the names, or a colour that cannot be chosen.

    Source: Park et al. 2021, as used with CLIP by DreamFields and DreamFusion.
    """
    said = readable(judge) if among is None else tuple(among)
    wanted = world.parse(prompt, captions.articles())
    asked = [(wanted.name, wanted.colour)] * len(images)
    found = judge.similarity(images, [captions.write(*meaning) for meaning in said]).cpu()
    return captions.right(found, asked, said).float().mean().item()


def save_judge(judge: Judge, folder: Path) -> None:
    """Write the weights in half precision and the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        # Batch counters are of no use once training is over.
        name: value.detach().cpu().half().contiguous()
        for name, value in judge.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    (folder / "judge.safetensors").write_bytes(save(state))
    (folder / "config.json").write_text(
        json.dumps(
            {"channels": judge.channels, "depths": judge.depths, "vocabulary": judge.vocabulary}, indent=1
        )
        + "\n"
    )


def load_judge(device: torch.device | str = "cpu", folder: Path = SHIPPED["embedded"]) -> Judge:
    """Load a judge, frozen and in single precision.

    Args:
        device: where it computes.
        folder: by default that of the ``embedded`` judge; ``SHIPPED["things"]`` is that of the ``things`` judge.

    Raises:
        ValueError: the folder holds no judge, or one that cannot be read.
    """
    if not (folder / "judge.safetensors").exists():
        raise ValueError(f"no judge in {folder}; train one with examples/embedded/train_judge.py")
    try:
        config = json.loads((folder / "config.json").read_text())
        judge = Judge(config["vocabulary"], tuple(config["channels"]), tuple(config["depths"]))
        state = {name: value.float() for name, value in load_file(folder / "judge.safetensors").items()}
        missing, unexpected = judge.load_state_dict(state, strict=False)
        if lost := [*unexpected, *(name for name in missing if not name.endswith("num_batches_tracked"))]:
            raise ValueError(f"weights and settings do not agree on {lost[0]}")
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        why = line_of(error).partition(" size mismatch")[0][:120]
        raise ValueError(
            f"the judge in {folder} cannot be read ({why}); copy it again, or train one with examples/embedded/train_judge.py"
        ) from error
    return judge.eval().requires_grad_(False).to(device)
