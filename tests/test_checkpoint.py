"""Checkpoints: what goes in comes out, damage is found, and the good one before is used."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.files.checkpoint import load_checkpoint, save_checkpoint

STATE = {
    "scene": {"grid": torch.arange(6.0).view(2, 3), "flag": torch.tensor(True)},
    "optimiser": {
        "state": {0: {"step": torch.tensor(3.0)}},
        "param_groups": [{"lr": 0.1, "betas": [0.9, 0.99], "params": [0]}],
    },
    "generator": torch.Generator().manual_seed(1).get_state(),
    "step": 3,
    "average": None,
}


def test_round_trip_keeps_values_types_and_integer_keys(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, STATE)
    back = load_checkpoint(tmp_path)
    assert back is not None
    assert torch.equal(back["scene"]["grid"], STATE["scene"]["grid"])  # type: ignore[index]
    assert back["scene"]["flag"].dtype == torch.bool
    assert list(back["optimiser"]["state"]) == [0]
    assert back["optimiser"]["param_groups"] == STATE["optimiser"]["param_groups"]  # type: ignore[index]
    assert torch.equal(back["generator"], STATE["generator"])  # type: ignore[arg-type]
    assert (back["step"], back["average"]) == (3, None)


def test_only_the_newest_are_kept_and_no_partial_folder_stays(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, STATE, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000002", "step-000003"]
    assert (tmp_path / "latest").read_text() == "step-000003\n"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1, "x": torch.zeros(100)})
    newest = save_checkpoint(tmp_path, 2, {"step": 2, "x": torch.ones(100)}) / "tensors.safetensors"
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
        newest.write_bytes(data)
    elif damage == "truncate":
        newest.write_bytes(data[:-50])
    else:
        newest.unlink()
    with caplog.at_level(logging.WARNING):
        back = load_checkpoint(tmp_path)
    assert back is not None and back["step"] == 1
    assert "step-000002" in caplog.text


def test_when_all_are_damaged_it_says_so(tmp_path: Path) -> None:
    (save_checkpoint(tmp_path, 1, STATE) / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="none of the 1 checkpoints"):
        load_checkpoint(tmp_path)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "nowhere") is None


def test_files_follow_the_umask(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, STATE)
    fresh = tmp_path / "fresh"
    fresh.touch()
    assert (path / "tensors.safetensors").stat().st_mode == fresh.stat().st_mode


def test_it_is_written_where_folders_cannot_be_opened_and_what_is_synced_must_be_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rules of Windows."""
    fcntl = pytest.importorskip("fcntl")
    opened, synced = os.open, os.fsync

    def open_file(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *rest, **options)

    def sync(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        synced(descriptor)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", sync)
    for step in (1, 2, 3, 3):
        save_checkpoint(tmp_path, step, {"x": torch.full((2,), float(step))}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000002", "step-000003"]
    found = load_checkpoint(tmp_path)
    assert found is not None and torch.equal(found["x"], torch.full((2,), 3.0))


def test_a_full_disk_is_one_line_and_leaves_the_one_before_alone(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    save_checkpoint(tmp_path, 1, {"x": torch.ones(2)})
    (tmp_path / ".step-000001.99.tmp").mkdir()
    (tmp_path / ".step-000001.99.tmp" / "tensors.safetensors").write_bytes(b"torn")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"step-000002 cannot be written \(.*resume=true") as caught:
            save_checkpoint(tmp_path, 2, {"x": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000001"]
    found = load_checkpoint(tmp_path)
    assert found is not None and torch.equal(found["x"], torch.ones(2))


class Killed(BaseException):
    """Ends a process where it stands, as far as files can tell."""


@pytest.mark.parametrize("moment", range(8))
def test_writing_a_step_again_never_leaves_none_even_when_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """A run checkpoints its last step twice; a kill at any rename or removal between leaves one of the two, and the next continues."""
    calls = iter(range(100))

    def dying(what: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) == moment:
                raise Killed
            return what(*arguments, **options)

        return call

    save_checkpoint(tmp_path, 4, {"x": torch.ones(2)}, keep=1)
    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rmdir"):
            patch.setattr(os, name, dying(getattr(os, name)))
        with contextlib.suppress(Killed):
            save_checkpoint(tmp_path, 4, {"x": torch.full((2,), 2.0)}, keep=1)
    found = load_checkpoint(tmp_path)
    assert found is not None and found["x"].tolist() in ([1, 1], [2, 2])
    save_checkpoint(tmp_path, 4, {"x": torch.full((2,), 3.0)}, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000004"]
    again = load_checkpoint(tmp_path)
    assert again is not None and again["x"].tolist() == [3, 3]
