"""``distill summary FOLDER``: one table over all runs below a folder, as text, CSV and a page."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

from distill.export.report import render
from distill.export.thumbnail import thumbnail
from distill.files.atomic import write_atomic
from distill.run.folder.differences import entries, told_apart
from distill.run.folder.failures import noted
from distill.run.folder.settings import text_of
from distill.run.folder.table import cut
from distill.run.folder.table import read as read_table
from distill.run.several.stages import FOLDER
from distill.wording import aligned

log = logging.getLogger(__name__)

#: States of a run, in the order of the table: what needs a look comes first.
STATES = ("failed", "collapsed", "refused", "unfinished", "finished")
#: Lines of the table that are printed; the files have all.
PRINTED = 40
#: Columns of the file.
COLUMNS = ("prompt", "seed", "state", "score", "seconds", "steps", "folder", "why", "guidance", "options")


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
        guidance: the loss; empty where it is not noted.
        options: that tell the run from others of the same prompt; empty where none do.
    """

    prompt: str
    seed: int | None
    state: str
    score: float | None
    seconds: float | None
    steps: str
    folder: str
    why: str
    guidance: str = ""
    options: str = ""


def summarise(root: Path) -> tuple[list[Run], Path]:
    """Read all runs below a folder, and write ``summary.csv`` and ``summary.html`` into it.

    A run's seeds and particles are in its own line. Prompts that were refused stand in the tables that batches wrote. What cannot
    be read, or vanishes meanwhile, is said and left out.

    Args:
        root: a folder, such as ``outputs``.

    Returns:
        The runs, those that failed first, and the page.

    Raises:
        ValueError: it is no folder, holds no run, or cannot be written.
    """
    if not root.is_dir():
        raise ValueError(f"summary needs a folder with runs, such as outputs/, and {root} is none")
    found, tables = list[Run](), list[Path]()
    for folder, names in walk(root):
        if is_run(names):
            try:
                found.append(read(folder, root))
            except OSError as error:
                log.warning("%s cannot be read: %s", folder, error.strerror)
        else:
            tables += [folder / name for name in sorted(names) if re.fullmatch(r"batch.*\.csv", name)]
    done = {run.prompt for run in found}
    found += [run for run in refused(tables) if run.prompt not in done]
    if not found:
        raise ValueError(f"{root} holds no run: no folder in it has a config.yaml or a manifest.json")
    found = compared(found, root)
    found.sort(key=lambda run: (STATES.index(run.state), run.prompt, run.folder))
    try:
        write_atomic(root / "summary.csv", as_csv(found))
        write_atomic(root / "summary.html", page(found, root))
    except OSError as error:
        raise ValueError(
            f"the summary cannot be written to {root} ({error.strerror}); free some space, or make it writable"
        ) from error
    return found, root / "summary.html"


def compared(runs: Sequence[Run], root: Path) -> list[Run]:
    """The runs, those of one prompt with the options that differ between them."""
    rows = defaultdict[str, list[int]](list)
    for index, run in enumerate(runs):
        rows[run.prompt].append(index)
    said = [""] * len(runs)
    for own in (each for each in rows.values() if len(each) > 1):
        known = [(index, found) for index in own if (found := entries(text_of(root / runs[index].folder)))]
        for (index, _), told in zip(known, told_apart([found for _, found in known]), strict=True):
            said[index] = plain(told)
    return [run._replace(options=own) for run, own in zip(runs, said, strict=True)]


def folders(root: Path) -> Iterator[Path]:
    """Yield the folders of runs below a folder, itself among them; what is in a run's folder is its own."""
    return (folder for folder, names in walk(root) if is_run(names))


def is_run(names: Collection[str]) -> bool:
    """Tell whether a folder with these files is a run's."""
    return "config.yaml" in names or "manifest.json" in names


def walk(root: Path) -> Iterator[tuple[Path, set[str]]]:
    """Yield a folder and those below it, each with the names of its files; of what is in a run's folder, nothing."""
    names, below = set[str](), list[str]()
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                else:
                    names.add(entry.name)
    except OSError as error:
        log.warning("%s cannot be read: %s", root, error.strerror)
        return
    yield root, names
    if not is_run(names):
        for name in sorted(below):
            if not name.startswith("."):
                yield from walk(root / name)


def read(folder: Path, root: Path) -> Run:
    """The line of one run, whatever its files hold.

    Raises:
        OSError: the folder cannot be looked into.
    """
    said = noted(folder)
    known = {"prompt", "seed", "iterations", "guidance"} <= set(said) and not (folder / FOLDER).is_dir()
    asked = {} if known else head(text_of(folder))
    finished = (folder / "report.html").is_file()
    state = "finished" if finished else str(said.get("state", "unfinished"))
    iterations = number(said.get("iterations", asked.get("iterations")))
    seeds = [row for row in listed(said.get("seeds")) if isinstance(row, dict)]
    seconds = said.get("seconds")
    parts = [number(part) or 0.0 for part in seconds.values()] if isinstance(seconds, dict) else None
    lost = [f"{row.get('folder')}: {row['why']}" for row in seeds if row.get("why")]
    name = asked.get("image") if isinstance(asked.get("image"), str) else None
    return Run(
        prompt=plain(said.get("prompt") or asked.get("prompt") or Path(name or folder).stem),
        seed=whole(said.get("seed", asked.get("seed"))),
        state=state if state in STATES else "failed",
        score=number(said.get("score")),
        seconds=None if parts is None else round(sum(parts), 1),
        steps=progress(folder, finished, int(iterations), said, asked) if iterations else "",
        folder=plain(folder.relative_to(root).as_posix()),
        why=plain(said["why"]) if said.get("why") else plain("; ".join(lost)),
        guidance=plain(said.get("guidance") or loss_of(asked)),
    )


def progress(
    folder: Path, finished: bool, iterations: int, said: Mapping[str, Any], asked: Mapping[str, Any]
) -> str:
    """How many steps are done, of how many; those of all stages, and of a run of several seeds, of all that have begun."""
    earlier = asked.get("earlier")
    before = (
        [each for each in earlier.values() if isinstance(each, dict)] if isinstance(earlier, dict) else []
    )
    iterations += sum(whole(each.get("iterations")) or iterations for each in before)
    if finished:
        return f"{iterations}/{iterations}"
    if own := sorted(folder.glob("seed-*/config.yaml")):
        done = sum(done_in(path.parent) for path in own)
        return f"{done}/{iterations * max(len(own), whole(asked.get('seeds')) or 1)}"
    return f"{(not before and whole(said.get('step'))) or done_in(folder)}/{iterations}"


def done_in(folder: Path) -> int:
    """Steps that an unfinished run has done, in all its stages."""
    return sum(
        steps_of(path) for path in (folder / "metrics.jsonl", *folder.glob(f"{FOLDER}/*/metrics.jsonl"))
    )


def number(value: object) -> float | None:
    """A finite number of a file that may hold anything, else None."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return value if known and math.isfinite(value) else None  # type: ignore[arg-type, return-value]
    except OverflowError:  # an integer of more digits than a float has room for
        return None


def whole(value: object) -> int | None:
    """An integer of a file that may hold anything, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def listed(value: object) -> list[Any]:
    """A list of a file that may hold anything, else an empty one."""
    return value if isinstance(value, list) else []


def plain(value: object) -> str:
    """A text that can be written: what is no character, as in the names of some files, is a question mark."""
    return str(value).encode("utf-8", "replace").decode()


def head(text: str) -> dict[str, Any]:
    """What the table needs of the text of a ``config.yaml``, ``earlier`` stages with it, without reading the rest of it as YAML."""
    # Top-level entries, each with the lines that belong to it.
    wanted = re.findall(
        r"^(?:(?:prompt|seed|seeds|image|iterations):.*|earlier:|guidance:)\n(?:[ \t].*\n|\n)*",
        text,
        re.MULTILINE,
    )
    try:
        found = yaml.safe_load("".join(wanted))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def loss_of(asked: Mapping[str, Any]) -> str:
    """The loss of a ``config.yaml``, as a manifest names it; empty where it has none."""
    part = asked.get("guidance")
    target = part.get("_target_") if isinstance(part, dict) else None
    return target.rpartition(".")[2].lower() if isinstance(target, str) else ""


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


def refused(tables: Sequence[Path]) -> Iterator[Run]:
    """Yield the prompts that have no folder, each once, from the tables of batches; the newest table has the last word."""
    found = dict[str, Run]()
    for path in sorted(tables, key=changed):
        if (rows := read_table(path)) is None:
            log.warning("%s is not a table of a batch, and is skipped", path)
            continue
        for row in rows:
            found.pop(row.prompt, None)
            if row.failed and not row.folder:
                found[row.prompt] = Run(
                    row.prompt, None, "refused", None, None, "", "", " ".join(row.state.split())
                )
    yield from found.values()


def changed(path: Path) -> float:
    """When a file was written, seconds; 0 for one that is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


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
            "report": f"{quote(run.folder)}/report.html" if run.state == "finished" else "",
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

    def shown(value: object, width: int = 48) -> str:
        return "" if value is None else cut(str(value), width)

    differ = ("options",) if any(run.options for run in runs) else ()
    titles = ("prompt", "seed", "guidance", *differ, "state", "score", "seconds", "steps", "folder", "why")
    # The options tell runs apart by their ends, too.
    widths = {"options": 200}
    lines = (tuple(shown(getattr(run, name), widths.get(name, 48)) for name in titles) for run in runs[:most])
    rows = [titles, *lines]
    more = [f"and {len(runs) - most} more"] if len(runs) > most else []
    return "\n".join([*aligned(rows), *more, counted(runs)])
