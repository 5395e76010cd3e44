"""Train the judge: a contrastive image-text model of the embedded world that is used for evaluation only.

It is trained on every pair of colour and kind, including those held out from the prior, with other shapes. Blur, shifts,
recolouring and noise imitate the renders of an optimised scene.

Run it from this folder; an interrupted run continues when started again. The shipped weights were trained on 160,000 pictures, then
continued to 240,000:
    python train_judge.py --work ~/judge --images 240000
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import dataset
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample
from tqdm import tqdm

from distill.embedded import world
from distill.embedded.judge import SHIPPED, Judge, save_judge, world_vocabulary

SEED, FRESH_SEED = 10_000_000, 20_000_000
WITH_VIEW = 0.5
#: Pictures of each pair in a batch, so that captions of one pair that differ in the view meet.
TOGETHER = 4


def uniform(low: float, high: float, shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=g)


def move(layers: Tensor, g: torch.Generator) -> Tensor:
    """Shift, zoom and roll a little; what comes in from outside is empty."""
    n = len(layers)
    roll, zoom = uniform(-0.12, 0.12, (n,), g), uniform(0.85, 1.25, (n,), g)
    cos, sin = torch.cos(roll) * zoom, torch.sin(roll) * zoom
    shift = uniform(-0.15, 0.15, (2, n), g)
    theta = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], dim=1).view(n, 2, 3)
    grid = affine_grid(theta, list(layers.shape), align_corners=False)
    return grid_sample(layers, grid, align_corners=False)


def blur(layers: Tensor, g: torch.Generator) -> Tensor:
    """Blur by a Gaussian whose width, up to 1.5 pixels, is drawn for the batch."""
    sigma = float(uniform(0.05, 1.5, (1,), g))
    kernel = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma).square())
    kernel = (kernel / kernel.sum()).repeat(layers.shape[1], 1, 1, 1)
    groups = layers.shape[1]
    layers = conv2d(layers, kernel, padding=(0, 3), groups=groups)
    return conv2d(layers, kernel.transpose(2, 3), padding=(3, 0), groups=groups)


def recolour(image: Tensor, g: torch.Generator) -> Tensor:
    """Change saturation, brightness and white balance a little, and add noise."""
    n = len(image)
    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * uniform(0.75, 1.4, (n, 1, 1, 1), g)
    image = image * uniform(0.8, 1.15, (n, 1, 1, 1), g) * uniform(0.95, 1.05, (n, 3, 1, 1), g)
    strength = uniform(0.0, 0.08, (n, 1, 1, 1), g)
    return (image + strength * torch.randn(image.shape, generator=g)).clamp(0, 1)


def picture(pictures: dataset.Pictures, index: Tensor, colour: Tensor, g: torch.Generator) -> Tensor:
    """Make augmented pictures in [0, 1] of chosen renders in chosen colours, ``[batch, 3, 64, 64]``."""
    layers = pictures.layers[index].permute(0, 3, 1, 2).float() / 255
    layers = move(layers, g)
    if torch.rand(1, generator=g) < 0.6:
        layers = blur(layers, g)
    n = len(index)
    rgb = (pictures.palette[colour] + 0.03 * torch.randn(n, 3, generator=g)).clamp(0, 1)
    # A thin scene lets the background through.
    solid = uniform(0.75, 1.0, (n, 1, 1, 1), g) * layers[:, 4:5]
    shown = layers[:, :3] + layers[:, 3:4] * rgb[:, :, None, None]
    shown = shown * solid / layers[:, 4:5].clamp(min=1e-3)
    background = uniform(0.4, 1.0, (n, 1, 1, 1), g).masked_fill(
        torch.rand(n, 1, 1, 1, generator=g) < 0.4, 1.0
    )
    return recolour(shown + (1 - solid) * background, g)


def plain(pictures: dataset.Pictures, index: Tensor, colour: Tensor) -> Tensor:
    """Chosen renders in chosen colours over white, in [0, 1], ``[batch, 3, 64, 64]``."""
    layers = pictures.layers[index].permute(0, 3, 1, 2).float() / 255
    return layers[:, :3] + layers[:, 3:4] * pictures.palette[colour][:, :, None, None] + 1 - layers[:, 4:5]


def contrast(judge: Judge, images: Tensor, captions: list[str], matches: Tensor) -> Tensor:
    """CLIP's symmetric loss where several captions can be right for a picture, each as much as the others."""
    logits = (
        judge.log_scale.exp().clamp(max=50) * judge.image_features(images) @ judge.text_features(captions).T
    )
    rows = -(logits.log_softmax(1) * matches).sum(1) / matches.sum(1)
    columns = -(logits.log_softmax(0) * matches).sum(0) / matches.sum(0)
    return (rows.mean() + columns.mean()) / 2


def draw(pictures: dataset.Pictures, batch: int, g: torch.Generator) -> tuple[Tensor, list[str], Tensor]:
    """Draw pictures, a caption of each, and which caption is true of which picture (1 or 0)."""
    pairs = batch // TOGETHER
    kind = torch.randint(len(world.KINDS), (pairs,), generator=g)
    # One render in sixteen is from overhead; these are the hardest to tell and are drawn four times as often.
    weight = 1.0 + 3.0 * (pictures.view == world.VIEWS.index(world.OVERHEAD))
    own = (pictures.kind == kind[:, None]) * weight
    index = torch.multinomial(own, TOGETHER, replacement=True, generator=g).flatten()
    kind, view = pictures.kind[index], pictures.view[index]
    colour = torch.randint(len(world.COLOURS), (pairs,), generator=g).repeat_interleave(TOGETHER)
    told = torch.rand(len(index), generator=g) < WITH_VIEW
    template = torch.randint(len(world.TEMPLATES), (len(index),), generator=g)
    names = list(world.COLOURS)
    captions = [
        world.caption(names[c], world.KINDS[k], world.VIEWS[v] if tell else None, form)
        for c, k, v, tell, form in zip(
            *(x.tolist() for x in (colour, kind, view, told, template)), strict=True
        )
    ]
    same = (colour[:, None] == colour) & (kind[:, None] == kind) & ((view[:, None] == view) | ~told)
    return picture(pictures, index, colour, g), captions, same.float()


@torch.no_grad()
def accuracy(judge: Judge, pictures: dataset.Pictures, g: torch.Generator, augmented: bool = False) -> float:
    """The share of pictures whose first caption of the world's 128 has the right colour and kind."""
    judge.eval()
    device, right = judge.log_scale.device, 0
    for index in torch.arange(len(pictures.kind)).split(256):
        colour = torch.randint(len(world.COLOURS), (len(index),), generator=g)
        images = picture(pictures, index, colour, g) if augmented else plain(pictures, index, colour)
        best = judge.rank(images.to(device), world.all_captions())[:, 0].cpu()
        right += int((best == pictures.kind[index] * len(world.COLOURS) + colour).sum())
    judge.train()
    return right / len(pictures.kind)


def save_state(path: Path, state: dict[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures and training state")
    parser.add_argument("--images", type=int, default=240_000, help="pictures to train on, in all")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak-lr", type=float, default=2e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-minutes", type=float, default=1)
    parser.add_argument("--output", type=Path, default=SHIPPED, help="rewritten at each save")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    dataset.build(options.work / "pictures", shapes_per_kind=24, seed=SEED)
    dataset.build(options.work / "fresh", shapes_per_kind=4, seed=FRESH_SEED)
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    pictures, fresh = (dataset.Pictures(options.work / name, g) for name in ("pictures", "fresh"))
    judge = Judge(world_vocabulary()).to(options.device)
    print(f"judge: {sum(p.numel() for p in judge.parameters()) / 1e6:.2f}M parameters")
    optimiser = torch.optim.AdamW(judge.parameters(), lr=options.peak_lr, weight_decay=0.02)
    seen, path = 0, options.work / "judge.pt"
    if path.exists():
        state = torch.load(path, map_location=options.device, weights_only=True)
        judge.load_state_dict(state["judge"])
        optimiser.load_state_dict(state["optimiser"])
        g.set_state(state["generator"].cpu())
        seen = state["seen"]

    def save() -> None:
        save_state(path, {"judge": judge.state_dict(), "optimiser": optimiser.state_dict(),
                          "generator": g.get_state(), "seen": seen})  # fmt: skip
        save_judge(judge, options.output)

    progress = tqdm(total=options.images, initial=seen, unit="img", mininterval=10)
    saved = time.time()
    while seen < options.images:
        images, captions, matches = draw(pictures, options.batch, g)
        loss = contrast(judge, images.to(options.device), captions, matches.to(options.device))
        optimiser.zero_grad()
        loss.backward()
        done = seen / options.images
        for group in optimiser.param_groups:
            group["lr"] = options.peak_lr * min((done + 1e-3) / 0.05, 0.5 * (1 + math.cos(math.pi * done)))
        optimiser.step()
        seen += options.batch
        progress.update(options.batch)
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if time.time() - saved > 60 * options.save_minutes:
            save()
            probe = torch.Generator().manual_seed(1)
            tqdm.write(f"{seen} images, right on fresh renders: {accuracy(judge, fresh, probe):.2%}")
            saved = time.time()
    save()
    progress.close()
    probe = torch.Generator().manual_seed(1)
    clean, worn = accuracy(judge, fresh, probe), accuracy(judge, fresh, probe, augmented=True)
    print(f"{seen} images; right on fresh renders {clean:.2%}, on augmented {worn:.2%}; in {options.output}")


if __name__ == "__main__":
    main()
