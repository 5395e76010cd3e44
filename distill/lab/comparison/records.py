"""Records of a comparison's cells."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.embedded.judge import SHIPPED, Judge, load_judge
from distill.files.lines import finite
from distill.lab.comparison.figures import SIZE
from distill.run.folder.folders import folder_name

#: The file of a cell's pictures, and that of what the methods' steps cost.
VIEWS, COSTS = "views.png", "costs.json"
#: A finished cell, as in its ``cell.json``.
Record = Mapping[str, Any]
#: Figures that every finished cell has; the others may be None, such as those that need a truth where there is none.
ALWAYS = ("r_precision", "similarity", "saturation", "red", "green", "blue")


#: The bundled judges, by what records say of them.
_JUDGES = {"": SHIPPED["embedded"], "things": SHIPPED["things"]}


@dataclass(frozen=True)
class Cell:
    """One asset of a comparison."""

    method: str
    prompt: str
    seed: int

    def folder(self, root: Path) -> Path:
        return root / "cells" / self.method / f"{folder_name(self.prompt)}-{self.seed}"


def read_record(path: Path) -> dict[str, Any]:
    """The record in a ``cell.json``; a figure that was measured and is no number is nan again."""
    record: dict[str, Any] = json.loads(path.read_text())
    for point in (*record.get("points", ()), *record.get("gradient", ())):
        point.update({name: math.nan for name, value in point.items() if value is None})
    final = record.get("final", {})
    final.update({name: math.nan for name in ALWAYS if final.get(name, 0.0) is None})
    return record


def costs_in(root: Path) -> dict[str, dict[str, Any]]:
    """What ``costs.json`` says, by method; empty where there is none."""
    path = root / COSTS
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def is_cost_of(cost: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Tell whether a cost was measured with these options of a method."""
    return bool(cost["options"] == finite(options))


def by_step(record: Record) -> dict[int, Mapping[str, float]]:
    """The points of a cell's curve by their steps, in order."""
    return {point["step"]: point for point in record["points"]}


def common_steps(records: Sequence[Record]) -> list[int]:
    """The steps at which all of some cells have a point, in order; none without cells."""
    steps = [{point["step"] for point in record["points"]} for record in records]
    return sorted(set.intersection(*steps)) if steps else []


def of(records: Sequence[Record], method: str) -> list[Record]:
    """The records of one method."""
    return [record for record in records if record["method"] == method]


def by_prompt(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each prompt, prompts and seeds in order."""
    ordered = sorted(records, key=lambda record: (record["prompt"], record["seed"]))
    return [list(group) for _, group in groupby(ordered, key=lambda record: record["prompt"])]


def judge_of(records: Sequence[Record]) -> Judge:
    """Load the judge that measured cells.

    Raises:
        ValueError: several did, so that their figures cannot be compared.
    """
    folders = {record["judge"] for record in records}
    if len(folders) > 1:
        raise ValueError(
            f"the cells were measured by several judges ({', '.join(sorted(map(str, folders)))}); compare into another folder"
        )
    return load_judge(folder=_JUDGES.get("".join(folders), Path("".join(folders))))


def judge_name(folder: Path) -> str:
    """Return what records say of a judge's folder: nothing for the one of the kinds, as always, and a name for the other bundled one."""
    return next((name for name, shipped in _JUDGES.items() if shipped == folder), str(folder))


def pictured(record: Record, root: Path) -> bool:
    """Tell whether a cell's pictures are there."""
    folder = Cell(record["method"], record["prompt"], record["seed"]).folder(root)
    return bool(record["points"]) and (folder / VIEWS).is_file()


def views_of(record: Record, root: Path) -> Tensor | None:
    """The pictures that a cell kept at every point of its curves, shape ``[points, views, 3, size, size]``.

    None where there are none: it has no points, or its ``cell.json`` alone was brought here from another machine.
    """
    if not pictured(record, root):
        return None
    path = Cell(record["method"], record["prompt"], record["seed"]).folder(root) / VIEWS
    rows = torch.from_numpy(np.array(Image.open(path))).float() / 255
    return torch.stack([torch.stack(row.split(SIZE, dim=1)) for row in rows.split(SIZE)]).movedim(-1, 2)
