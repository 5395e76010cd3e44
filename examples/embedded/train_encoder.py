"""Train an image encoder on renders alone, without labels or captions, in two stages.

First self-distillation with crops of several sizes. The architecture is DINOv2's (transformers' ``Dinov2Model``), small; the
loss is DINO's (Caron et al. 2021, arXiv:2104.14294, Eq. 1 and 3 with centring). Pictures are not mirrored, because a novel
view depends on left and right.

The class token of so small a model knows little of what it sees, and its maps know much. So then, with the encoder frozen, a
``TokenHead`` learns to make a token of the last layer's patches: pictures of one object from two sides, recoloured, are to have
tokens that are more alike than those of different objects (the loss of SimCLR, Chen et al. 2020, arXiv:2002.05709, Eq. 1).
The maps stay as they are, bit for bit. Both are evaluated by their nearest neighbours: whether they show the same kind, colour
and side.

    python examples/embedded/train_encoder.py --work ~/encoder
    python examples/embedded/train_encoder.py --work ~/token --encoder distill/embedded/novel_view/image_encoder    # the token alone

An interrupted first stage continues when started again.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize, softmax
from tqdm import tqdm
from transformers import Dinov2Config, Dinov2Model

from distill.embedded import world
from distill.files.checkpoint import load_checkpoint, save_checkpoint
from distill.lab.novel_view import memory, world_renders
from distill.priors.novel_view.features import IMAGENET, Encoder, TokenHead, load_encoder
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


def labels_of(store: memory.Store) -> Tensor:
    """Kind, colour and side (sixteen directions) of every picture, for the evaluation alone, shape ``[pictures, 3]``."""
    names, parts = list(world.COLOURS), [uid.split("-") for uid in store.uids]
    of_objects = torch.tensor([[world.KINDS.index(kind), names.index(colour)] for colour, kind, _ in parts])
    side = (torch.rad2deg(spherical(store.positions)[1]) / 22.5).round().long() % 16
    return torch.cat([of_objects.repeat_interleave(store.first.diff(), 0), side[:, None]], dim=1)


@torch.no_grad()
def neighbours(encoder: Encoder, known: memory.Store, asked: memory.Store) -> dict[str, float]:
    """Share of pictures whose token's nearest known one shows the same kind, colour, and side within a direction."""
    places = [torch.arange(0, len(store.pictures), 7 if store is known else 1) for store in (known, asked)]
    tokens = [
        torch.cat([encoder(store.rgb(part)).token for part in place.split(256)])
        for store, place in zip((known, asked), places, strict=True)
    ]
    old, new = (normalize(token, dim=1) for token in tokens)
    truth = labels_of(asked)[places[1]]
    nearest = labels_of(known)[places[0]][(new @ old.T).argmax(1)]
    away = (nearest[:, 2] - truth[:, 2] + 8) % 16 - 8
    return {
        "kind": (nearest[:, 0] == truth[:, 0]).float().mean().item(),
        "colour": (nearest[:, 1] == truth[:, 1]).float().mean().item(),
        "side": (away.abs() <= 1).float().mean().item(),
    }


@torch.no_grad()
def last_patches(encoder: Encoder, store: memory.Store, g: torch.Generator) -> Tensor:
    """The last layer's patches of every picture, once recoloured and cropped a little, shape ``[pictures, patches, width]``."""
    found = []
    for part in tqdm(torch.arange(len(store.pictures)).split(256), desc="encoding"):
        images = normalised(crop(store.rgb(part), LARGE_SHARE, SIZE, g))
        found.append(encoder.model(pixel_values=images).last_hidden_state[:, encoder.prefix :].half())
    return torch.cat(found)


def contrast(one: Tensor, other: Tensor, temperature: float = 0.1) -> Tensor:
    """SimCLR's loss: of all tokens but its own, each is to be nearest to that of the same object's other picture.

    Args:
        one: tokens of a picture of each object, shape ``[objects, width]``.
        other: tokens of another picture of each, same shape.
        temperature: of the softmax over cosines.
    """
    tokens = normalize(torch.cat([one, other]), dim=1)
    logits = (tokens @ tokens.T / temperature).fill_diagonal_(-math.inf)
    return nn.functional.cross_entropy(logits, torch.arange(len(tokens)).roll(len(one)))


def fit_token(encoder: Encoder, store: memory.Store, steps: int, batch: int, seed: int) -> TokenHead:
    """Train a head for an encoder that stays as it is."""
    g = torch.Generator().manual_seed(seed)
    patches = last_patches(encoder, store, g)
    torch.manual_seed(seed)
    head = TokenHead(encoder.model.config.hidden_size, encoder.grid)
    # As in SimCLR, the loss sees the token through two more layers, which are then left out.
    further = nn.Sequential(nn.GELU(), nn.Linear(encoder.model.config.hidden_size, 128))
    parameters = [*head.parameters(), *further.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.05)
    for step in tqdm(range(steps), desc="training the token"):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        pair = store.draw(batch, g)
        loss = contrast(*(further(head(patches[index].float())) for index in pair))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return head.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="renders, checkpoints, and the encoder at the end"
    )
    parser.add_argument("--encoder", type=Path, help="a trained one, for a token alone")
    parser.add_argument("--shapes", type=int, default=70, help="of each kind, each in one colour")
    parser.add_argument("--views", type=int, default=12, help="of each shape")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--token-steps", type=int, default=2000)
    parser.add_argument("--token-batch", type=int, default=512)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    known, asked = pictures(options)
    folder = options.encoder or train_maps(options, known, asked)
    encoder = load_encoder(folder)
    print(f"nearest neighbours of the class token: {neighbours(replace(encoder, head=None), known, asked)}")
    head = fit_token(encoder, known, options.token_steps, options.token_batch, options.seed)
    encoder = replace(encoder, head=head)
    print(f"nearest neighbours of the head's token: {neighbours(encoder, known, asked)}")
    encoder.model.half()
    encoder.save(options.work / "encoder")
    print(f"the encoder is in {options.work / 'encoder'}")


def pictures(options: argparse.Namespace) -> tuple[memory.Store, memory.Store]:
    """The world's trained pairs of colour and kind, and fresh shapes of the pairs that are held out."""
    said = world_renders.WorldOptions(shapes=options.shapes, views=options.views, steep=0, seed=options.seed)
    unseen = replace(said, shapes=10, seed=options.seed + 1000)
    old, new = world_renders.cached_shapes([said, unseen], options.work, options.workers)
    return world_renders.painted(old, colours=1), world_renders.painted(
        new, held_out=True, colours=1, seed=unseen.seed
    )


def train_maps(options: argparse.Namespace, store: memory.Store, asked: memory.Store) -> Path:
    """The first stage; returns the encoder's folder."""
    known = store.pictures
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
            encoder = Encoder(teacher.encoder, (DEPTH,), *IMAGENET, "teacher")
            found = neighbours(encoder, store, asked)
            tqdm.write(f"step {step + 1}: loss {loss.item():.3f}, nearest neighbours {found}")
            state = {
                "student": dict(student.state_dict()), "teacher": dict(teacher.state_dict()), "centre": centre,
                "optimiser": optimiser.state_dict(), "step": step + 1,
            }  # fmt: skip
            save_checkpoint(options.work / "checkpoints", step + 1, state)
    teacher.encoder.save_pretrained(options.work / "maps")
    return Path(options.work / "maps")


if __name__ == "__main__":
    main()
