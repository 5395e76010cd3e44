"""Train an image encoder on renders alone, without captions: self-distillation with crops of several sizes.

The architecture is DINOv2's (transformers' ``Dinov2Model``), small; the loss is DINO's (Caron et al. 2021,
arXiv:2104.14294, Eq. 1 and 3 with centring). Pictures are not mirrored, because a novel view depends on left and right.
It is evaluated by its nearest neighbours: whether they show the same kind, colour and side.

    distill-views render --world 10 renders --size 64 --fov 40 40 --distance 3.0 3.4 --elevation -10 60
    python train_encoder.py --renders renders --work ~/encoder

An interrupted run continues when started again.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize, softmax
from tqdm import tqdm
from transformers import Dinov2Config, Dinov2Model

from distill.embedded import world
from distill.files.checkpoint import load_checkpoint, save_checkpoint
from distill.lab.novel_view.views import Views, from_folder
from distill.priors.novel_view.features import IMAGENET
from distill.priors.novel_view.pose import spherical

WIDTH, DEPTH, HEADS, MLP_RATIO, PATCH, SIZE, SMALL = 96, 4, 4, 2, 8, 64, 32
PROTOTYPES, STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, CENTRE_MOMENTUM = 1024, 0.1, 0.04, 0.9
#: How many crops of each size, and the share of the picture's side that they show.
LARGE_CROPS, LARGE_SHARE = 2, (0.7, 1.0)
SMALL_CROPS, SMALL_SHARE = 4, (0.35, 0.6)


class Network(nn.Module):
    """The encoder and the head that its training alone needs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Dinov2Model(
            Dinov2Config(
                hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, mlp_ratio=MLP_RATIO,
                patch_size=PATCH, image_size=SIZE, layer_norm_eps=1e-6,
            )
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(WIDTH, 512), nn.GELU(), nn.Linear(512, 64))
        self.prototypes = nn.Parameter(torch.randn(PROTOTYPES, 64))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of the prototypes, cosines, shape ``[batch, prototypes]``."""
        token = self.encoder(pixel_values=pixels).last_hidden_state[:, 0]
        return normalize(self.head(token), dim=1) @ normalize(self.prototypes, dim=1).T


def dino_loss(students: list[Tensor], teachers: list[Tensor], centre: Tensor) -> Tensor:
    """Cross-entropy of every student's crop with every teacher's other crop."""
    goals = [softmax((logits - centre) / TEACHER_TEMPERATURE, dim=1) for logits in teachers]
    guesses = [log_softmax(logits / STUDENT_TEMPERATURE, dim=1) for logits in students]
    pairs = [
        -(goal * guess).sum(1).mean()
        for i, goal in enumerate(goals)
        for j, guess in enumerate(guesses)
        if i != j
    ]
    return torch.stack(pairs).mean()


def crop(images: Tensor, share: tuple[float, float], size: int, g: torch.Generator) -> Tensor:
    """A square part of each picture at a place of its own, resized, in colours and a brightness of its own.

    Were the colours kept, crops would be told apart by them alone, and neither kind nor side would be learnt.
    """
    n = len(images)
    scale = share[0] + (share[1] - share[0]) * torch.rand(n, generator=g)
    shift = (1 - scale)[:, None] * (2 * torch.rand(n, 2, generator=g) - 1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale, scale, shift
    grid = nn.functional.affine_grid(theta, [n, 3, size, size], align_corners=False)
    seen = nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    seen = recolour(seen, 2 * math.pi * torch.rand(n, generator=g), 1.2 * torch.rand(n, generator=g))
    gain = 0.8 + 0.4 * torch.rand(n, 1, 1, 1, generator=g)
    return (seen * gain + 0.1 * (torch.rand(n, 1, 1, 1, generator=g) - 0.5)).clamp(0, 1)


def recolour(images: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    """Turn each picture's colours about the axis of greys by ``hue``, radians, and stretch them away from it."""
    grey = torch.full((3, 3), 1 / 3)
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cos, sin, stretch = (value[:, None, None] for value in (hue.cos(), hue.sin(), saturation))
    turn = grey + stretch * (cos * (torch.eye(3) - grey) + sin * across)
    return torch.einsum("nij,njhw->nihw", turn, images)


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    return (images - mean) / std


def load_pictures(views: Views) -> tuple[Tensor, Tensor]:
    """All pictures as bytes, ``[n, 3, 64, 64]``, and for each its kind, colour and side (sixteen directions)."""
    pictures, labels = [], []
    names = list(world.COLOURS)
    for uid in tqdm(views.uids, desc="reading renders"):
        colour, kind, _ = uid.split("-")
        for index in range(views.count):
            rgb, position = views.read(uid, index)
            azimuth = math.degrees(spherical(position[None])[1].item())
            pictures.append((rgb * 255).round().byte())
            labels.append([world.KINDS.index(kind), names.index(colour), round(azimuth / 22.5) % 16])
    return torch.stack(pictures), torch.tensor(labels)


@torch.no_grad()
def neighbours(
    network: Network, known: Tensor, answers: Tensor, asked: Tensor, truth: Tensor
) -> dict[str, float]:
    """Share of pictures whose nearest known one shows the same kind, colour, and side within a direction."""
    features = []
    for images in (known, asked):
        tokens = [
            network.encoder(pixel_values=normalised(part.float() / 255)).last_hidden_state
            for part in images.split(256)
        ]
        joined = torch.cat([torch.cat([t[:, 0], t[:, 1:].mean(1)], dim=1) for t in tokens])
        features.append(normalize(joined, dim=1))
    nearest = answers[(features[1] @ features[0].T).argmax(1)]
    away = (nearest[:, 2] - truth[:, 2] + 8) % 16 - 8
    return {
        "kind": (nearest[:, 0] == truth[:, 0]).float().mean().item(),
        "colour": (nearest[:, 1] == truth[:, 1]).float().mean().item(),
        "side": (away.abs() <= 1).float().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--renders", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, and the encoder at the end")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    views = from_folder(options.renders, count=options.views, size=SIZE, check=False)
    # The world's held-out pairs of colour and kind come last.
    train, held_out = views.split(1 / 8)
    known, answers = load_pictures(train)
    asked, truth = load_pictures(held_out)
    torch.manual_seed(options.seed)
    student = Network()
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimiser = torch.optim.AdamW(student.parameters(), lr=options.rate, weight_decay=0.04)
    centre, start = torch.zeros(1, PROTOTYPES), 0
    if saved := load_checkpoint(options.work / "checkpoints"):
        student.load_state_dict(saved["student"])
        teacher.load_state_dict(saved["teacher"])
        optimiser.load_state_dict(saved["optimiser"])
        centre, start = saved["centre"], saved["step"]

    bar = tqdm(range(start, options.steps), initial=start, total=options.steps, desc="training")
    for step in bar:
        # A generator for each step: what was drawn before does not matter to a resumed run.
        g = torch.Generator().manual_seed(options.seed * 10_000_000 + step)
        progress = step / options.steps
        warm = min(1.0, (step + 1) / 500)
        for group in optimiser.param_groups:
            group["lr"] = options.rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        images = known[torch.randint(len(known), (options.batch,), generator=g)].float() / 255
        large = [normalised(crop(images, LARGE_SHARE, SIZE, g)) for _ in range(LARGE_CROPS)]
        small = [normalised(crop(images, SMALL_SHARE, SMALL, g)) for _ in range(SMALL_CROPS)]
        with torch.no_grad():
            goals = teacher(torch.cat(large)).chunk(LARGE_CROPS)
        guesses = [
            *student(torch.cat(large)).chunk(LARGE_CROPS),
            *student(torch.cat(small)).chunk(SMALL_CROPS),
        ]
        loss = dino_loss(guesses, list(goals), centre)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimiser.step()
        with torch.no_grad():
            momentum = 1 - 0.01 * 0.5 * (1 + math.cos(math.pi * progress))
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 1 - momentum)
            centre = CENTRE_MOMENTUM * centre + (1 - CENTRE_MOMENTUM) * torch.cat(goals).mean(0, keepdim=True)
        if (step + 1) % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if (step + 1) % 500 == 0 or step + 1 == options.steps:
            found = neighbours(teacher, known[::7], answers[::7], asked, truth)
            tqdm.write(f"step {step + 1}: loss {loss.item():.3f}, nearest neighbours {found}")
            state = {
                "student": dict(student.state_dict()), "teacher": dict(teacher.state_dict()), "centre": centre,
                "optimiser": optimiser.state_dict(), "step": step + 1,
            }  # fmt: skip
            save_checkpoint(options.work / "checkpoints", step + 1, state)
    teacher.encoder.half().save_pretrained(options.work / "encoder")
    print(f"the encoder is in {options.work / 'encoder'}")


if __name__ == "__main__":
    main()
