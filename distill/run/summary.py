"""``distill summary FOLDER``: one table over all runs below a folder, as text, CSV and a page."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import yaml

from distill.export.report import render
from distill.export.thumbnail import thumbnail
from distill.files.atomic import write_atomic
from distill.run.failures import noted

#: States of a run, in the order of the table: what needs a look comes first.
STATES = ("failed", "collapsed", "refused", "unfinished", "finished")
#: Lines of the table that are printed; the files have all.
PRINTED = 40
#: Columns of the file.
COLUMNS = ("prompt", "seed", "state", "score", "seconds", "steps", "folder", "why")


class Run(NamedTuple):
    """One line of the table.

    Attributes:
        prompt: or the name of the picture.
        seed: as configured, or the one that was chosen among several; None where it is not known.
        state: one of ``STATES``.
        score: of a judge, or None.
        seconds: loading, training and export; None where it is not known.
        steps: done, of how many, such as ``120/400``.
        folder: relative to the summary's; empty for a prompt that was refused.
        why: it failed, in one line.
    """

    prompt: str
    seed: int | None
    state: str
    score: float | None
    seconds: float | None
    steps: str
    folder: str
    why: str


def summarise(root: Path) -> tuple[list[Run], Path]:
    """Read all runs below a folder, and write ``summary.csv`` and ``summary.html`` into it.

    A run's seeds and particles are in its own line. Prompts that were refused stand in the tables that batches wrote.

    Args:
        root: a folder, such as ``outputs``.

    Returns:
        The runs, those that failed first, and the page.

    Raises:
        ValueError: it is no folder, holds no run, or cannot be written.
    """
    if not root.is_dir():
        raise ValueError(f"summary needs a folder with runs, such as outputs/, and {root} is none")
    found = [read(folder, root) for folder in folders(root)]
    done = {run.prompt for run in found}
    found += [run for run in refused(root) if run.prompt not in done]
    if not found:
        raise ValueError(f"{root} holds no run: no folder in it has a config.yaml or a manifest.json")
    found.sort(key=lambda run: (STATES.index(run.state), run.prompt, run.folder))
    try:
        write_atomic(root / "summary.csv", as_csv(found))
        write_atomic(root / "summary.html", page(found, root))
    except OSError as error:
        raise ValueError(
            f"the summary cannot be written to {root} ({error.strerror}); free some space, or make it writable"
        ) from error
    return found, root / "summary.html"


def folders(root: Path) -> Iterator[Path]:
    """Yield the folders of runs below a folder, itself among them; what is in a run's folder is its own."""
    names, below = set(), []
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
            else:
                names.add(entry.name)
    if names & {"config.yaml", "manifest.json"}:
        yield root
        return
    for name in sorted(below):
        if not name.startswith("."):
            yield from folders(root / name)


def read(folder: Path, root: Path) -> Run:
    """The line of one run."""
    said = noted(folder)
    asked = {} if {"prompt", "seed", "iterations"} <= set(said) else head(folder / "config.yaml")
    finished = (folder / "report.html").is_file()
    state = "finished" if finished else str(said.get("state", "unfinished"))
    iterations = said.get("iterations", asked.get("iterations"))
    done = iterations if finished else said.get("step") or steps_of(folder / "metrics.jsonl")
    seconds = said.get("seconds")
    seeds = said.get("seeds") or []
    lost = [f"{row['folder']}: {row['why']}" for row in seeds if row.get("why")]
    return Run(
        prompt=str(said.get("prompt") or asked.get("prompt") or Path(asked.get("image") or folder).stem),
        seed=said.get("seed", asked.get("seed")),
        state=state if state in STATES else "failed",
        score=said.get("score"),
        seconds=round(sum(seconds.values()), 1) if isinstance(seconds, dict) else None,
        steps=f"{done}/{iterations}" if iterations else "",
        folder=folder.relative_to(root).as_posix(),
        why=str(said["why"]) if said.get("why") else "; ".join(lost),
    )


def head(path: Path) -> dict[str, Any]:
    """The prompt, the seed, the picture and the iterations of a ``config.yaml``, without reading the rest of it as YAML."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    # Top-level entries, each with the lines that belong to it.
    wanted = re.findall(r"^(?:prompt|seed|image|iterations):.*\n(?:[ \t].*\n|\n)*", text, re.MULTILINE)
    try:
        found = yaml.safe_load("".join(wanted))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def steps_of(path: Path) -> int:
    """Steps that an unfinished run has done: its last whole line of metrics, and one for the first, which is 0."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"]) + 1
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def refused(root: Path) -> Iterator[Run]:
    """Yield the prompts that have no folder, from the tables of batches in a folder."""
    for path in sorted(root.glob("batch*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row.get("state") not in ("finished", "skipped", None) and not row.get("folder"):
                    yield Run(row["prompt"], None, "refused", None, None, "", "", str(row["state"]))


def as_csv(runs: Sequence[Run]) -> str:
    """The table as a file; what is not known is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(["" if value is None else value for value in run] for run in runs)
    return out.getvalue()


def page(runs: Sequence[Run], root: Path) -> str:
    """A wall of all runs: nothing on it is loaded from elsewhere."""
    cards = [
        {
            **run._asdict(),
            "picture": thumbnail(root / run.folder) if run.folder else "",
            "report": f"{run.folder}/report.html" if run.state == "finished" else "",
        }
        for run in runs
    ]
    return render("summary.html", "summary.js", title=root.resolve().name, counts=counted(runs), runs=cards)


def counted(runs: Sequence[Run]) -> str:
    """How many runs are in which state."""
    counts = Counter(run.state for run in runs)
    return ", ".join(f"{counts[state]} {state}" for state in reversed(STATES) if counts[state])


def as_text(runs: Sequence[Run], most: int = PRINTED) -> str:
    """The table's first lines, for a terminal."""

    def shown(value: object) -> str:
        return "" if value is None else shorten(str(value), 48, placeholder="...")

    titles = ("prompt", "state", "score", "seconds", "steps", "why")
    rows = [titles, *(tuple(shown(getattr(run, name)) for name in titles) for run in runs[:most])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    more = [f"and {len(runs) - most} more"] if len(runs) > most else []
    return "\n".join([*lines, *more, counted(runs)])
