"""Evaluate generated views against the ground truth, on fixed pairs, for each object."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from distill.files.atomic import write_atomic
from distill.files.lines import json_of
from distill.lab.novel_view.pairs import Pair, draw_indices, mixed, read_pair
from distill.lab.novel_view.views import Views
from distill.priors.novel_view.pose import spherical
from distill.run.folder.table import cut

#: Draws views: conditions ``[n, 3, h, w]``, poses ``[n, 4]`` and a generator for each, to ``[n, 3, h, w]``, in [0, 1].
Draw = Callable[[Tensor, Tensor, Sequence[torch.Generator]], Tensor]
#: Views drawn at a time.
BATCH = 16


@dataclass(frozen=True)
class FixedPair:
    """A pair of views by name, as in a list on disk."""

    uid: str
    condition: int
    target: int


def choose_pairs(views: Views, per_object: int, seed: int = 0) -> list[FixedPair]:
    """Pairs of every object, the same at every call; the view that is given is never the one that is wanted."""
    chosen = []
    for place, uid in enumerate(views.uids):
        for number in range(per_object):
            _, condition, target = draw_indices(number, 1, views.count, mixed(seed, place) % 2**31)
            chosen.append(FixedPair(uid, condition, target))
    return chosen


def write_pairs(path: Path, pairs: Sequence[FixedPair]) -> None:
    """Write a list that ``read_pairs`` reads."""
    write_atomic(path, json.dumps([vars(pair) for pair in pairs], indent=1) + "\n")


def read_pairs(path: Path, views: Views) -> list[FixedPair]:
    """Read a list of pairs.

    Raises:
        ValueError: it is no such list, is empty, or names objects or views that are not there.
    """
    try:
        pairs = [FixedPair(**entry) for entry in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} must be a JSON list of uid, condition and target, and cannot be read: {error}"
        ) from error
    if not pairs:
        raise ValueError(
            f"{path} must name at least one pair of views, and is empty; remove it to have pairs chosen"
        )
    known = set(views.uids)
    for pair in pairs:
        if not isinstance(pair.uid, str) or {type(pair.condition), type(pair.target)} != {int}:
            raise ValueError(
                f"{path} must give uid as text, and condition and target as integers, got {cut(str(vars(pair)), 80)}; mend it, or remove it to "
                "have pairs chosen"
            )
        if pair.uid not in known or not {pair.condition, pair.target} <= set(range(views.count)):
            raise ValueError(
                f"{path} names {pair.uid}, views {pair.condition} and {pair.target}, which are not there"
            )
        if pair.condition == pair.target:
            raise ValueError(
                f"{path} asks for view {pair.target} of {pair.uid}, which is the one that is given"
            )
    return pairs


def compare(drawn: Tensor, truth: Tensor) -> dict[str, float]:
    """Figures of one picture, both in [0, 1], shape ``[3, h, w]``.

    Returns:
        ``mse`` on [0, 1]; ``mse_signed`` on [-1, 1], four times that; ``psnr`` in dB; ``ssim``.
    """
    from skimage.metrics import structural_similarity

    mse = (drawn - truth).square().mean().item()
    one, other = (value.movedim(0, -1).double().numpy() for value in (drawn, truth))
    side = min(7, one.shape[0] - (one.shape[0] + 1) % 2)
    return {
        "mse": mse,
        "mse_signed": 4 * mse,
        "psnr": 10 * math.log10(1 / max(mse, 1e-10)),
        "ssim": float(structural_similarity(one, other, channel_axis=2, data_range=1.0, win_size=side)),
    }


def hue_error(drawn: Tensor, truth: Tensor, least: float = 0.01) -> float:
    """Angle between the mean colours of two pictures about the axis of greys, degrees; white and grey count for nothing.

    Args:
        drawn: in [0, 1], shape ``[3, h, w]``.
        truth: same shape.
        least: chroma of the true mean colour under which it has no hue.

    Returns:
        In [0, 180], or nan where the truth has no hue; 90 where only the drawn one has none.
    """
    across = torch.tensor([[1.0, -0.5, -0.5], [0.0, 3**0.5 / 2, -(3**0.5) / 2]])
    one, other = (across @ value.float().mean((1, 2)) for value in (drawn, truth))
    if other.norm() < least:
        return math.nan
    if one.norm() < 1e-4:
        return 90.0
    cos, sin = one @ other, one[0] * other[1] - one[1] * other[0]
    return math.degrees(abs(math.atan2(float(sin), float(cos))))


def perceptual() -> tuple[str, Callable[[Tensor, Tensor], float]]:
    """A perceptual distance and its name: LPIPS where the package and its weights are there, else the judge's.

    The judge's is one minus the cosine of its features, which know the embedded world alone; it is no LPIPS.
    """
    try:
        import lpips

        network = lpips.LPIPS(net="vgg", verbose=False).eval()
    except Exception:  # the package is missing, or its backbone cannot be fetched: in many ways
        from distill.embedded.judge import load_judge

        judge = load_judge()

        def by_judge(drawn: Tensor, truth: Tensor) -> float:
            pictures = torch.stack([drawn, truth])
            if pictures.shape[-1] != 64:
                pictures = nn.functional.interpolate(pictures, (64, 64), mode="bilinear", antialias=True)
            with torch.no_grad():
                one, other = judge.image_features(pictures.clamp(0, 1))
            return 1 - float((one * other).sum())

        return "judge_distance", by_judge

    def by_lpips(drawn: Tensor, truth: Tensor) -> float:
        with torch.no_grad():
            return float(network(drawn[None] * 2 - 1, truth[None] * 2 - 1))

    return "lpips_vgg", by_lpips


def turned_as_asked(drawn: Tensor, views: Views, uid: str, target: int) -> dict[str, float]:
    """Tell whether a picture is closest to the requested ground-truth view, among all views of the object.

    Returns:
        ``pose_right``, 1 or 0, and ``pose_error_deg``, by how much the most similar view's azimuth is off.
    """
    truth = [views.read(uid, index) for index in range(views.count)]
    nearest = min(range(views.count), key=lambda index: (drawn - truth[index][0]).square().mean().item())
    azimuths = [spherical(position[None])[1].item() for _, position in truth]
    away = math.degrees(abs(math.remainder(azimuths[nearest] - azimuths[target], 2 * math.pi)))
    return {"pose_right": float(nearest == target), "pose_error_deg": away}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95% interval, assumed to be normal; values that are not there (nan) do not count."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return math.nan, math.nan, math.nan
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.inf
    return mean, mean - half, mean + half


def evaluate(
    draw: Draw,
    views: Views,
    pairs: Sequence[FixedPair],
    out: Path,
    *,
    seed: int = 0,
    rows: int = 12,
    progress: bool = True,
    about: dict[str, Any] | None = None,
    groups: Mapping[str, Collection[str]] | None = None,
    batch: int = BATCH,
) -> dict[str, Any]:
    """Draw every pair's target and measure it.

    Args:
        draw: makes views.
        views: true ones.
        pairs: which to draw.
        out: of ``objects.csv``, ``summary.json`` and ``sheet.png``.
        seed: of the noise.
        rows: pairs on the sheet, evenly spread: input, truth, sample.
        progress: show a bar.
        about: what is evaluated, kept in the summary.
        groups: names of some of the objects, which are summed up apart as well; see ``oriented``.
        batch: views drawn at a time.

    Returns:
        The summary: for each figure its mean over objects and its 95% interval. What is nan or infinite in it, such as the interval
        of a single object, is null in the file.
    """
    from distill.lab.comparison.report import as_csv

    name, distance = perceptual()
    by_object: dict[str, list[dict[str, float]]] = {}
    shown = []
    for number, given, drawn in drawn_pairs(draw, views, pairs, seed, progress=progress, batch=batch):
        pair = pairs[number]
        figures = compare(drawn, given.target) | {name: distance(drawn, given.target)}
        figures |= turned_as_asked(drawn, views, pair.uid, pair.target)
        figures["hue_error_deg"] = hue_error(drawn, given.target)
        by_object.setdefault(pair.uid, []).append(figures)
        if number * rows // len(pairs) > (number - 1) * rows // len(pairs):
            shown.append(torch.cat([given.condition, given.target, drawn], dim=2))
    lines: list[dict[str, Any]] = [
        {
            "uid": uid,
            "pairs": len(found),
            **{key: interval([f[key] for f in found])[0] for key in found[0]},
        }
        for uid, found in by_object.items()
    ]
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "objects.csv", as_csv(lines))
    sheet = (torch.cat(shown, dim=1).movedim(0, -1).clamp(0, 1) * 255).round().byte().numpy()
    Image.fromarray(np.ascontiguousarray(sheet)).save(out / "sheet.png")
    figures_of = [key for key in lines[0] if key not in ("uid", "pairs")]
    summary: dict[str, Any] = {
        "about": about or {},
        "objects": len(lines),
        "pairs": len(pairs),
        "figures": {key: interval([line[key] for line in lines]) for key in figures_of},
        "groups": {
            name: {key: interval([line[key] for line in lines if line["uid"] in uids]) for key in figures_of}
            for name, uids in (groups or {}).items()
        },
    }
    write_atomic(out / "summary.json", json_of(summary, indent=2))
    return summary


def oriented(uids: Sequence[str]) -> dict[str, set[str]]:
    """The group ``oriented`` of the embedded world's objects, such as ``red-mug-0003``: those with a front.

    Empty where any name is not of this world; the near-symmetric kinds keep the azimuth's error high whatever a model
    does, so they are best quoted apart.
    """
    from distill.embedded import shapes

    parts = [uid.split("-") for uid in uids]
    if any(len(part) != 3 or part[1] not in shapes.KINDS for part in parts):
        return {}
    found = {uid for uid, part in zip(uids, parts, strict=True) if part[1] in shapes.ORIENTED}
    return {"oriented": found} if found else {}


def told_apart(views: Views, least: float = 0.01) -> dict[str, set[str]]:
    """The group ``told apart``: objects that look different from each side, as far as the views show.

    A lamp or a tree looks the same all around; which of its views a drawn one is nearest to says nothing about the drawing.

    Args:
        views: true ones.
        least: mean squared difference of an object's view, in [0, 1], from the most similar of its others; the mean over its views
            must be as large.
    """
    found = set()
    for uid in views.uids:
        shown = torch.stack([views.read(uid, index)[0] for index in range(views.count)]).flatten(1)
        apart = torch.cdist(shown, shown).square() / shown.shape[1]
        if float(apart.fill_diagonal_(math.inf).min(1).values.mean()) >= least:
            found.add(uid)
    return {"told apart": found} if found else {}


def drawn_pairs(
    draw: Draw,
    views: Views,
    pairs: Sequence[FixedPair],
    seed: int = 0,
    *,
    progress: bool = False,
    batch: int = BATCH,
) -> Iterator[tuple[int, Pair, Tensor]]:
    """Draw every pair's target: its number, what it shows, and the drawn view ``[3, h, w]``."""
    bar = tqdm(total=len(pairs), desc="drawing views", disable=not (progress and pairs))
    for start in range(0, len(pairs), batch):
        numbers = range(start, min(start + batch, len(pairs)))
        given = [read_pair(views, p.uid, p.condition, p.target) for p in pairs[start : numbers.stop]]
        noise = [torch.Generator().manual_seed(mixed(seed, number, 4)) for number in numbers]
        conditions = torch.stack([pair.condition for pair in given])
        drawn = draw(conditions, torch.stack([pair.pose for pair in given]), noise).cpu()
        bar.update(len(given))
        yield from zip(numbers, given, drawn, strict=True)
    bar.close()
