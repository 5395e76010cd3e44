"""The embedded prior's text side: a tokenizer of whole words, and an encoder aligned with pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dataset
import torch
from things_dataset import ThingPictures
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from distill.embedded import captions, things, world
from distill.priors.draft import Draft
from distill.priors.dtypes import mixed

#: Features of a token, and those of them that the world alone needs.
WIDTH, WORLD_WIDTH = 192, 128
TOKENS = 20
THUMBNAIL = 16
PLACES, LOOKS, CODES, DETAILS, DIRECTION = 72, 32, 40, 16, 8
#: A caption of the world without a colour stands for all of them.
WITHOUT_COLOUR = 0.08


def vocabulary(pictures: ThingPictures | None) -> list[str]:
    """All words of the captions, sorted."""
    forms = range(len(world.TEMPLATES))
    text = [world.caption(c, k, v, f) for c in world.COLOURS for k in world.KINDS for v in world.VIEWS
            for f in forms]  # fmt: skip
    text += [captions.write(k, None, None, f) for k in world.KINDS for f in forms]
    if pictures:
        rows = zip(pictures.pack.things, pictures.other, strict=True)
        text += [
            things.caption(name, one.article, colour, None, form)
            for one, other in rows
            for name in (one.name, other)
            for colour in ("red", "orange", None)
            for form in forms
        ]
    return sorted({word for line in text for word in line.replace(",", " ").replace("'s", " 's").split()})


def make_tokenizer(pictures: ThingPictures | None = None) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges spell out the captions' words; other words fall apart into letters.

    Words are put together from their ends: only a word's last piece bears the mark of an end, so no merge of another
    word can come between.
    """
    letters = [chr(code) for code in range(33, 127)]
    vocab = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in vocabulary(pictures):
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.append((pieces[-2], pieces[-1]))
            pieces[-2:] = ["".join(pieces[-2:])]
            vocab.append(pieces[-1])
    vocab = list(dict.fromkeys([*vocab, "<|startoftext|>", "<|endoftext|>"]))
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(vocab)},
        merges=list(dict.fromkeys(merges)),
        model_max_length=TOKENS,
    )


def make_text_encoder(tokenizer: CLIPTokenizer, width: int = WIDTH) -> CLIPTextModel:
    """An encoder of two layers; hundreds of names times seventeen views need wider ones than the world's kinds."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=(4 if width > WORLD_WIDTH else 2) * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    return tokenizer(
        captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


class Tokens:
    """Captions' tokens; each caption is taken apart once, as that takes longer than an update on a GPU.

    What is remembered is bounded by the captions there are: 140 MB for those of all real objects.

    Args:
        tokenizer: takes them apart.
    """

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, Tensor] = {}

    def __call__(self, captions: list[str]) -> Tensor:
        """Tokens of captions, ``[captions, TOKENS]``."""
        new = list(dict.fromkeys(text for text in captions if text not in self.known))
        if new:
            self.known.update(zip(new, tokens(self.tokenizer, new), strict=True))
        return torch.stack([self.known[text] for text in captions])


def mean_thumbnails(layers: Tensor, group: Tensor, groups: int) -> Tensor:
    """The mean small picture of each group, ``[groups, 5 * 16 * 16]``, of uint8 layers ``[n, 64, 64, 5]``."""
    total = torch.zeros(groups, 5 * THUMBNAIL**2)
    for start in range(0, len(group), 1024):
        part = layers[start : start + 1024].permute(0, 3, 1, 2).float() / 255
        small = nn.functional.adaptive_avg_pool2d(part, THUMBNAIL).flatten(1)
        total.index_add_(0, group[start : start + 1024], small.cpu())
    return total / torch.bincount(group, minlength=groups).clamp(min=1)[:, None]


def mean_views(pictures: dataset.Pictures, real: ThingPictures) -> tuple[Tensor, Tensor]:
    """The mean small picture of each view of each kind, and of each name of things, ``[kinds or names, views, 1280]``."""
    views = len(world.VIEWS)
    rows = (
        (pictures.layers, pictures.kind * views + pictures.view, len(world.KINDS)),
        (real.layers.flatten(0, 1), (real.name[:, None] * views + real.view).flatten(), len(real.names)),
    )
    kinds, names = (
        mean_thumbnails(layers, group, count * views).view(count, views, -1) for layers, group, count in rows
    )
    return kinds, names


def _about(means: Tensor) -> Tensor:
    """What a view of each object, ``[objects, views, n]``, has beside the object's mean view."""
    return means - means.mean(1, keepdim=True)


def _sized(values: Tensor, size: float) -> Tensor:
    return size * values / values.square().sum(-1).mean().sqrt()


def _principal(rows: Tensor, count: int) -> Tensor:
    """Principal coordinates, half whitened, ``[rows, count]``; zeros where there are not so many."""
    left, strength, _ = torch.linalg.svd(rows, full_matrices=False)
    found = (left * strength.sqrt())[:, :count]
    return nn.functional.pad(found, (0, count - found.shape[1]))


@dataclass(frozen=True)
class Coordinates:
    """What the encoder's features say of each view of each kind and of each name.

    Attributes:
        kinds: principal coordinates of the mean picture, ``[kinds, views, 72]``.
        names: the same coordinates of things, ``[names, views, 72]``, or None.
        looks: coordinates of a name's mean picture over all views, ``[names, 32]``, or None.
        codes: a name's own random direction, ``[names, 40]``, or None.
        details: coordinates of what ``names`` leaves out of its views, ``[names, views, 16]``, or None.
    """

    kinds: Tensor
    names: Tensor | None = None
    looks: Tensor | None = None
    codes: Tensor | None = None
    details: Tensor | None = None


def coordinates(pictures: dataset.Pictures, real: ThingPictures | None = None) -> Coordinates:
    """Principal components of thumbnails about each kind's mean, half whitened: by the fourth root of their variance.

    So what moves few pixels still counts. Things are measured along the same components, and along some of their own.
    """
    kinds, views = len(world.KINDS), len(world.VIEWS)
    means = mean_thumbnails(pictures.layers, pictures.kind * views + pictures.view, kinds * views)
    left, strength, right = torch.linalg.svd(
        _about(means.view(kinds, views, -1)).flatten(0, 1), full_matrices=False
    )
    raw = (left * strength.sqrt())[:, :PLACES].view(kinds, views, PLACES)
    size = 7.0 / raw.square().sum(-1).mean().sqrt()
    if real is None:
        return Coordinates(size * raw)
    count = len(real.names)
    group = (real.name[:, None] * views + real.view).flatten()
    seen = mean_thumbnails(real.layers.flatten(0, 1), group, count * views).view(count, views, -1)
    about, basis = _about(seen), right[:PLACES]
    names = _sized(about @ basis.T / strength[:PLACES].sqrt(), 7.0)
    rest = (about - about @ basis.T @ basis).flatten(0, 1)
    details = _sized(_principal(rest, DETAILS), 4.0).view(count, views, DETAILS)
    mean = seen.mean(1)
    looks = _sized(_principal(mean - mean.mean(0), LOOKS), 5.0)
    codes = 5 * nn.functional.normalize(
        torch.randn(count, CODES, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    return Coordinates(size * raw, names, looks, codes, details)


def directions() -> Tensor:
    """What tells views apart whatever they show: harmonics of the azimuth, and overhead, ``[views, 8]``."""
    azimuth = torch.arange(len(world.DIRECTIONS)) * (2 * torch.pi / len(world.DIRECTIONS))
    waves = [wave(k * azimuth) for k in (1, 2, 3) for wave in (torch.cos, torch.sin)]
    level = torch.stack([*waves, torch.ones_like(azimuth), torch.zeros_like(azimuth)], dim=1)
    overhead = torch.tensor([[0.0] * 6 + [1.0, 2.0]])
    return 2.5 * torch.cat([level, overhead])


def _world_batch(n: int, places: Coordinates) -> tuple[list[str], Tensor, Tensor]:
    """Captions of the world, which of them say a colour, bool ``[n]``, and their features, ``[n, 96]``."""
    colours, kinds, views = len(world.COLOURS), len(world.KINDS), len(world.VIEWS)
    colour, kind, view, form = (
        torch.randint(k, (n,)) for k in (colours, kinds, views + 1, len(world.TEMPLATES))
    )
    colour = torch.where(torch.rand(n) < WITHOUT_COLOUR, colours, colour)
    names: list[str | None] = [*world.COLOURS, None]
    texts = [
        captions.write(world.KINDS[k], names[c], world.VIEWS[v] if v < views else None, f)
        for c, k, v, f in zip(colour.tolist(), kind.tolist(), view.tolist(), form.tolist(), strict=True)
    ]
    place = torch.where((view < views)[:, None], places.kinds[kind, view.clamp(max=views - 1)], 0.0)
    told = 5 * nn.functional.one_hot(colour, colours + 1)[:, :colours]
    return texts, colour < colours, torch.cat([told, 5 * nn.functional.one_hot(kind, kinds), place], dim=1)


def _things_batch(n: int, real: ThingPictures, places: Coordinates) -> tuple[list[str], Tensor]:
    """Captions of things and their features, ``[n, 192]``."""
    colours, kinds, views = len(world.COLOURS), len(world.KINDS), len(world.VIEWS)
    assert places.names is not None and places.looks is not None
    assert places.codes is not None and places.details is not None
    thing = torch.multinomial(real.weight, n, replacement=True)
    view, form = torch.randint(views + 1, (n,)), torch.randint(len(world.TEMPLATES), (n,))
    chosen = real.paintable[thing] & (torch.rand(n) < 0.6)
    colour = torch.where(chosen, torch.randint(colours, (n,)), colours)
    words: list[str | None] = [*world.COLOURS, None]
    texts = [
        things.caption(
            real.other[i] if alias else real.pack.things[i].name,
            real.article[i],
            words[c],
            world.VIEWS[v] if v < views else None,
            f,
        )
        for i, c, v, f, alias in zip(
            *(x.tolist() for x in (thing, colour, view, form, torch.rand(n) < 0.15)), strict=True
        )
    ]
    name, at = real.name[thing], view.clamp(max=views - 1)
    told, seen = 5 * nn.functional.one_hot(colour, colours + 1)[:, :colours], (view < views)[:, None]
    features = [
        told,
        torch.zeros(n, kinds),
        torch.where(seen, places.names[name, at], 0.0),
        places.looks[name],
        places.codes[name],
        torch.where(seen, places.details[name, at], 0.0),
        torch.where(seen, directions()[at], 0.0),
    ]
    return texts, torch.cat(features, dim=1)


def mean_pictures(pictures: dataset.Pictures, real: ThingPictures) -> tuple[list[str], Tensor]:
    """Captions with a view, of kinds in two colours and of things as they are, and the mean small picture of each.

    The pictures have the five layers of ``dataset``, before a colour is chosen, with mean 0 and standard deviation 1 over all,
    shape ``[captions, 1280]``.
    """
    kinds, names = mean_views(pictures, real)
    articles = {one.name: one.article for one in real.pack.things}
    colours = list(world.COLOURS)[:: len(world.COLOURS) // 2]
    lines = [
        world.caption(colour, kind, view, form % len(world.TEMPLATES))
        for form, colour in enumerate(colours)
        for kind in world.KINDS
        for view in world.VIEWS
    ]
    lines += [
        things.caption(name, articles[name], None, view, 0) for name in real.names for view in world.VIEWS
    ]
    seen = torch.cat([*[kinds.flatten(0, 1)] * len(colours), names.flatten(0, 1)])
    return lines, (seen - seen.mean()) / seen.std()


@torch.no_grad()
def fit_draft(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, pictures: dataset.Pictures, real: ThingPictures
) -> Draft:
    """Fit the draft that an aligned encoder's features make: the least squares to ``mean_pictures``, slightly penalised."""
    lines, target = mean_pictures(pictures, real)
    read = [
        encoder(tokens(tokenizer, lines[at : at + 512]).to(encoder.device)).last_hidden_state[:, -1].cpu()
        for at in range(0, len(lines), 512)
    ]
    features = torch.cat(read)
    known = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    # The slightest penalty: features that are always 0 would have no weight of their own.
    solved = torch.linalg.solve(known.T @ known + 0.1 * torch.eye(known.shape[1]), known.T @ target)
    draft = Draft(features.shape[1], len(target[0]) // THUMBNAIL**2, THUMBNAIL)
    draft.layer.weight.copy_(solved[:-1].T)
    draft.layer.bias.copy_(solved[-1])
    return draft.eval().requires_grad_(False)


@dataclass(frozen=True)
class Reader:
    """An encoder with its tokenizer, whose features of the world another one takes over."""

    encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> Tensor:
        return self.encoder(tokens(self.tokenizer, captions)).last_hidden_state


def _batches(
    tokenizer: CLIPTokenizer, real: ThingPictures | None, places: Coordinates, old: Reader | None, n: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Token numbers, the features that are wanted ``[n, tokens, width]``, and where they count, 0 or 1."""
    width = WIDTH if real else WORLD_WIDTH
    while True:
        texts, told, wanted = _world_batch(n, places)
        ids = tokens(tokenizer, texts)
        target = torch.zeros(n, TOKENS, width)
        target[..., : wanted.shape[1]] = wanted[:, None]
        counts = (ids == tokenizer.eos_token_id).float()[..., None].expand(-1, -1, width).clone()
        if real is None and old is None:
            counts[..., wanted.shape[1] :] = 0
        if old is not None:
            # The UNet that is gone on from has never seen a caption without a colour.
            lines = [line for line, known in zip(texts, told.tolist(), strict=True) if known]
            target[told, :, :WORLD_WIDTH] = old(lines)[:, -1:]
            counts[told] = (ids[told] == tokenizer.eos_token_id).float()[..., None]
        if real is not None:
            lines, features = _things_batch(2 * n, real, places)
            more = tokens(tokenizer, lines)
            ids = torch.cat([ids, more])
            target = torch.cat([target, features[:, None].expand(-1, TOKENS, -1)])
            ends = (more == tokenizer.eos_token_id).float()[..., None].expand(-1, -1, width)
            counts = torch.cat([counts, ends])
        yield ids, target, counts


def train_text_encoder(
    tokenizer: CLIPTokenizer,
    pictures: dataset.Pictures,
    real: ThingPictures | None = None,
    old: Reader | None = None,
    steps: int = 2000,
) -> CLIPTextModel:
    """Align an encoder with pictures: features from the caption's end on are coordinates of what it describes.

    The first are the colour, then the kind, each one-hot, then ``coordinates`` of the mean picture (0, their mean, for a
    caption without a view), then those of a thing's name. Features that only name the words are not enough: what a view
    looks like depends on the kind, and a UNet left to find that out learns colours and kinds first and all but ignores the
    view. All tokens from the end of the caption on carry them, the padding too: attention that has not yet learnt where to
    look dilutes a single one.

    Args:
        tokenizer: from ``make_tokenizer``.
        pictures: of the world.
        real: of things; without them the encoder is as wide as the world needs.
        old: the text side of a prior that is gone on from; its features of the world's captions are kept.
        steps: of training.
    """
    places = coordinates(pictures, real)
    encoder = make_text_encoder(tokenizer, WIDTH if real else WORLD_WIDTH)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    progress = tqdm(range(steps), "text encoder", mininterval=10)
    batches: Any = _batches(tokenizer, real, places, old, 32 if real else 192)
    for _, (ids, target, counts) in zip(progress, batches, strict=False):
        with mixed("cpu"):
            features = encoder(ids).last_hidden_state
        errors = (features.float() - target).square() * counts
        loss = errors.sum() / counts.sum()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        share = loss.item() / ((target.square() * counts).sum() / counts.sum()).item()
        progress.set_postfix(loss=f"{loss.item():.4f}", unexplained=f"{share:.4f}", refresh=False)
    return encoder.eval().requires_grad_(False)
