"""One page that shows a finished run: nothing on it is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from distill.export.thumbnail import thumbnail
from distill.files.atomic import replacing
from distill.files.paths import user_path

_POINTS = 300  # per curve: about one for each unit of the drawing's width


def write_report(folder: Path | str, *, title: str | None = None) -> Path:
    """Write report.html from what a run's folder holds: a self-contained page that needs no network.

    It shows the exported GLB, turntable.mp4, contact.png, wall.png, reference.png, metrics.jsonl (one object per line: ``step`` and
    numbers), manifest.json and config.yaml; what is missing is left out.

    Args:
        folder: the run's folder.
        title: of the page; by default the manifest's ``prompt``, else the name of its picture, else the folder's.

    Returns:
        The page's path.

    Raises:
        ValueError: ``folder`` is no folder, or its manifest or metrics are not valid JSON.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise ValueError(f"Expected the folder of a run, got {str(folder)!r}, which is not a folder.")
    manifest = _manifest(folder / "manifest.json")
    page = render(
        "report.html",
        "viewer.js",
        title=title
        or str(manifest.get("prompt") or manifest.get("picture", {}).get("file") or folder.resolve().name),
        summary=_summary(manifest),
        glb=_base64(folder / _glb(folder, manifest)),
        glb_name=_glb(folder, manifest),
        video=_base64(folder / "turntable.mp4"),
        contact=_base64(folder / "contact.png"),
        wall=_base64(folder / "wall.png"),
        reference=_base64(folder / "reference.png"),
        curves=curves(_metrics(folder / "metrics.jsonl")),
        particles=manifest.get("particles", []),
        stages=manifest.get("stages", []),
        seeds=[_seed(folder, row, manifest.get("chosen")) for row in manifest.get("seeds", [])],
        manifest=flatten(manifest),
        config=_text(folder / "config.yaml"),
    )
    path = folder / "report.html"
    with replacing(path) as part:
        part.write_bytes(
            page.encode("utf-8", "replace")
        )  # what is no character, as in the names of some files, is a question mark
    return path


def render(template: str, script: str, **values: Any) -> str:
    """Fill a template of this folder with values, the shared style, and a script, the only one that the page lets run."""
    home = files("distill.export")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    code = home.joinpath(script).read_text("utf-8")
    # Markup marks it as safe to insert.
    return environment.from_string(home.joinpath(template).read_text("utf-8")).render(
        style=Markup(home.joinpath("style.css").read_text("utf-8")),
        script=Markup(code),
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}",
        **values,
    )


def _seed(folder: Path, row: Mapping[str, Any], chosen: object) -> dict[str, Any]:
    """What the page shows of one of several seeds."""
    words = [] if row["score"] is None else [f"score {row['score']}"]
    words += [f"{row['seconds']} s"] if row["state"] == "finished" else [f"{row['state']}: {row.get('why')}"]
    return {
        "folder": row["folder"],
        "said": ", ".join([*words, *(["the run's own"] if row["folder"] == chosen else [])]),
        "chosen": row["folder"] == chosen,
        "finished": row["state"] == "finished",
        "picture": thumbnail(folder / row["folder"]),
    }


def curves(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Draw each quantity over the steps: SVG points of the raw values and of their running mean.

    Args:
        metrics: one mapping per record with ``step`` and any numbers; what is not finite is skipped.

    Returns:
        For each quantity with two values or more: its name, points on a canvas of 300 x 100, and figures.
    """
    names = dict.fromkeys(name for record in metrics for name in record if name != "step")
    drawn = []
    for name in names:
        values = [(record["step"], record[name]) for record in metrics if _drawable(record, name)]
        if len(values) >= 2:
            drawn.append(_curve(name, values))
    return drawn


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Turn nested mappings into rows: ``{"a": {"b": 1}}`` gives ``[("a.b", "1")]``."""
    rows: list[tuple[str, str]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)))
    return rows


def _curve(name: str, values: list[tuple[float, float]]) -> dict[str, str]:
    low, high = min(value for _, value in values), max(value for _, value in values)
    first, last = values[0][0], values[-1][0]

    def points(series: list[tuple[float, float]]) -> str:
        if high == low:
            return "0,50 300,50"
        wide, tall = (last - first) or 1, high - low
        thinned = series[:: math.ceil(len(series) / _POINTS)] + series[-1:]
        return " ".join(f"{300 * (s - first) / wide:.1f},{100 * (high - v) / tall:.1f}" for s, v in thinned)

    return {
        "name": name,
        "raw": points(values),
        "mean": points(_running_mean(values)),
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "last": f"{values[-1][1]:.3g}",
        "first_step": f"{first:g}",
        "last_step": f"{last:g}",
    }


def _running_mean(values: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Mean over a window about each step, a tenth of the curve wide, cut off at the curve's ends."""
    sums = [0.0, *accumulate(value for _, value in values)]
    half = len(values) // 20
    smoothed = []
    for index, (step, _) in enumerate(values):
        start, end = max(index - half, 0), min(index + half + 1, len(values))
        smoothed.append((step, (sums[end] - sums[start]) / (end - start)))
    return smoothed


def _drawable(record: Mapping[str, Any], name: str) -> bool:
    pair = (record.get("step"), record.get(name))
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in pair)


def _summary(manifest: Mapping[str, Any]) -> str:
    """The manifest's plain top-level entries that say most, in one line."""
    found = [(name, manifest.get(name)) for name in ("guidance", "prior", "iterations", "seed", "device")]
    named = [(name, value.get("name") if isinstance(value, Mapping) else value) for name, value in found]
    return " \N{MIDDLE DOT} ".join(f"{name} {value}" for name, value in named if value is not None)


def _manifest(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"Expected JSON in {path}, not so at line {error.lineno}; remove it.") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"Expected a JSON object in {path}, got a {type(manifest).__name__}; remove it.")
    return manifest


def _metrics(path: Path) -> list[Mapping[str, Any]]:
    """Read one JSON object per line; a last line that a kill cut short is left out."""
    lines = (_text(path) or "").splitlines()
    records: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"Expected JSON in line {number} of {path}; remove the line.") from error
        if isinstance(record, dict):
            records.append(record)
    return records


def _glb(folder: Path, manifest: Mapping[str, Any]) -> str:
    """The name of the GLB that the run wrote, else of the last one of it exported again."""
    exports = [manifest.get("export"), *reversed(manifest.get("exports", ()))]
    written = [name for each in exports if isinstance(each, Mapping) for name in each.get("meshes", ())]
    return next((name for name in written if name.endswith(".glb") and (folder / name).exists()), "mesh.glb")


def _text(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


def _base64(path: Path) -> str | None:
    return base64.b64encode(path.read_bytes()).decode() if path.exists() else None
