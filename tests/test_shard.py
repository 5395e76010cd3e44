"""A queue of prompts in parts: deterministic, disjoint, complete; and the table over it."""

from __future__ import annotations

import csv
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill import cli
from distill.run.config.compose import compose_config
from distill.run.several import batch
from distill.run.several.queue import shard_of


@given(st.lists(st.text(), unique=True), st.integers(1, 9))
def test_parts_are_disjoint_complete_and_by_position(prompts: list[str], count: int) -> None:
    parts = [shard_of(prompts, f"{i}/{count}") for i in range(1, count + 1)]
    assert sorted(chain(*parts)) == sorted(prompts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for i, part in enumerate(parts):
        assert [prompts.index(text) % count for text in part] == [i] * len(part)
        assert part == sorted(part, key=prompts.index)
    assert shard_of(prompts, None) == prompts


@pytest.mark.parametrize(
    "shard", ["0/2", "3/2", "1", "1/", "/2", "-1/2", "1/2/3", "a/b", "1.0/2", "", "²/4", "1/0"]
)
def test_a_wrong_part_is_one_line(shard: str) -> None:
    with pytest.raises(ValueError, match="shard must be i/n with i from 1 to n, such as 1/4, got") as said:
        compose_config(["prompts=list.txt", f"shard='{shard}'"])
    assert "\n" not in str(said.value)
    with pytest.raises(ValueError, match="add prompts=FILE"):
        compose_config(["prompt=a red mug", "shard=1/2"])


def test_each_part_has_its_table_and_the_last_line_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts one to five in two parts; the fourth fails, and the words of the second hold a comma and quotes."""
    monkeypatch.chdir(tmp_path)
    prompts = ["a red mug", 'a blue "mug", big', "a green mug", "a pink mug", "a brown mug"]
    Path("list.txt").write_text("\n".join(["# wanted", *prompts, prompts[0]]))

    def one(config: Any, prompt: str, root: Path, prior: object, desk: object) -> tuple[str, str]:
        return ("no surface" if prompt == prompts[3] else "finished"), str(root / prompt[2:5])

    monkeypatch.setattr(batch, "_run_one", one)
    monkeypatch.setattr(batch, "open_prior", lambda *_: None)
    monkeypatch.setattr(batch, "embed_first", lambda *_: None)
    for shard, mine in (("1/2", prompts[::2]), ("2/2", prompts[1::2])):
        with pytest.raises(SystemExit) as ended:
            cli.main(["prompts=list.txt", f"shard={shard}", "output_dir=out"])
        path = Path("out") / f"batch-{shard.replace('/', '-of-')}.csv"
        assert capsys.readouterr().out.splitlines()[-1] == f"open {path}"
        rows = list(csv.DictReader(path.open()))
        assert [row["prompt"] for row in rows] == mine
        assert [row["state"] for row in rows] == (
            ["finished"] * 3 if shard == "1/2" else ["finished", "no surface"]
        )
        assert rows[0]["folder"] == str(Path("out") / mine[0][2:5]) and float(rows[0]["seconds"]) < 10
        assert ended.value.code == (0 if shard == "1/2" else 1)
    assert sorted(path.name for path in Path("out").iterdir()) == ["batch-1-of-2.csv", "batch-2-of-2.csv"]
