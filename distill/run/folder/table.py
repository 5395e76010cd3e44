"""The table of a batch, and texts short enough for a line of one."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from distill.files.atomic import write_atomic
from distill.files.lock import InUse, hold
from distill.wording import aligned

log = logging.getLogger(__name__)

#: Lines of a table or a list that are shown; the file has all.
SHOWN = 40
#: Longest field of a table that is read, characters: a prompt may be longer than the 131,072 that ``csv`` takes.
FIELD = 2**31 - 1


#: State of a prompt that another process is at work on.
BUSY = "at work elsewhere"
#: Seconds to wait for another process that writes the same table, a moment's work.
WAIT = 60.0


class Row(NamedTuple):
    """What became of a prompt: ``finished``, ``skipped`` if it was before, ``BUSY``, or the error; its folder, and how long it took, seconds."""

    prompt: str
    state: str
    folder: str
    seconds: float

    @property
    def failed(self) -> bool:
        return self.state not in ("finished", "skipped", BUSY)


def cut(text: str, width: int) -> str:
    """A text in one line of at most so many characters, whether it has spaces or not."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3].rstrip() + "..."


def tell(rows: Sequence[Row], path: Path) -> None:
    """Write a batch's table as CSV, and show its first lines, what failed before the rest.

    Rows of other prompts that are in the file stay in it; a disk that is full is said, and takes nothing else away.
    """
    shown = sorted(rows, key=lambda row: not row.failed)[:SHOWN]
    lines = [(cut(row.prompt, 40), cut(row.state, 40), row.folder, f"{row.seconds:.1f}") for row in shown]
    for line in aligned([Row._fields, *lines]):
        log.info("%s", line)
    if len(rows) > SHOWN:
        log.info("... and %d more in %s", len(rows) - SHOWN, path)
    try:
        write(rows, path)
    except InUse:
        log.error("the table cannot be written to %s: for %.0f s, another process was writing it", path, WAIT)
    except OSError as error:
        log.error("the table cannot be written to %s: %s", path, error.strerror)


def write(rows: Sequence[Row], path: Path) -> None:
    """Write a table, below the rows that a file of that name has of other prompts.

    Who found a prompt in another's hands knows less of it than a row that is there.

    Raises:
        InUse: another process is writing it all the time.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path.parent, WAIT, f".{path.name}.lock"):
        before = read(path) if path.exists() else []
        if before is None:
            log.error("%s is no table of a batch and stays; move it to have the table written there", path)
            return
        known = {row.prompt for row in before}
        mine = [row for row in rows if not (row.state == BUSY and row.prompt in known)]
        told = {row.prompt for row in mine}
        text = io.StringIO()
        kept = [row for row in before if row.prompt not in told]
        csv.writer(text, lineterminator="\n").writerows([Row._fields, *kept, *mine])
        write_atomic(path, text.getvalue())


def read(path: Path) -> list[Row] | None:
    """The rows of a table; None where the file cannot be read or is none of a batch."""
    limit = csv.field_size_limit(FIELD)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = csv.reader(file)
            if tuple(next(found, ())) != Row._fields:
                return None
            return [Row(prompt, state, folder, float(seconds)) for prompt, state, folder, seconds in found]
    except (OSError, ValueError, csv.Error):  # not UTF-8 and other numbers of fields are ValueErrors
        return None
    finally:
        csv.field_size_limit(limit)
