"""What a part of the report finds: tables and notes, on disk as soon as they are known."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def write(path: Path, text: str) -> None:
    """Replace a file at once, so that a process that is killed leaves no half of it."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    os.replace(temporary, path)


@dataclass
class Record:
    """Tables by title and notes, written to ``path`` at each change."""

    path: Path
    tables: dict[str, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def row(self, title: str, row: Row) -> None:
        self.tables.setdefault(title, []).append(row)
        print(f"{title}: {row}", flush=True)
        self.save()

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(text, flush=True)
        self.save()

    def save(self) -> None:
        write(self.path, json.dumps({"tables": self.tables, "notes": self.notes}))


def shown(value: Any) -> str:
    """A cell: four digits of a number, and nothing that would end the cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")


def markdown(rows: list[Row]) -> str:
    """A table with every column that a row has."""
    titles = list(dict.fromkeys(title for row in rows for title in row))
    lines = [titles, ["---"] * len(titles), *([shown(row.get(title)) for title in titles] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
