"""Features on disk: equal to live ones, resumed, and refused when they are of something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_novelview_data import write_object
from test_novelview_model import write_encoder

from distill.lab.novel_view import cache
from distill.lab.novel_view.cache import build_cache, estimate
from distill.lab.novel_view.views import Views, from_folder
from distill.priors.novel_view.features import load_encoder


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Views, Any, Path]:
    monkeypatch.setattr(cache, "GROUP", 2)
    for number in range(3):
        write_object(tmp_path / "renders" / f"object{number}", number)
    encoder = load_encoder(write_encoder(tmp_path / "encoder", "dinov2"), layers=[2, 4])
    return from_folder(tmp_path / "renders", count=3, size=8), encoder, tmp_path / "cache"


def build(parts: tuple[Views, Any, Path]) -> cache.FeatureCache:
    cache._opened.cache_clear()
    return build_cache(*parts, batch=2, progress=False)


def test_cached_features_are_the_live_ones_in_half_precision(parts: tuple[Views, Any, Path]) -> None:
    views, encoder, folder = parts
    found = build(parts)
    assert len(list(folder.iterdir())) == 2
    for uid in views.uids:
        for index in range(3):
            live, read = encoder(views.read(uid, index)[0][None]), found.read(uid, index)
            torch.testing.assert_close(read.token, live.token[0].half().float(), rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(read.maps, live.maps[0].half().float(), rtol=2e-3, atol=2e-3)
    # Nine pictures of 16 patches of 2 x 16 numbers, and a token of 16, two bytes each.
    assert estimate(views, encoder) == 9 * (16 * 32 + 16) * 2
    stored = sum(path.stat().st_size for path in folder.iterdir())
    assert estimate(views, encoder) < stored < estimate(views, encoder) + 4000


def test_an_interrupted_cache_goes_on(parts: tuple[Views, Any, Path]) -> None:
    build(parts)
    first, second = sorted(parts[2].iterdir())
    before = first.stat().st_mtime_ns
    second.unlink()
    build(parts)
    assert second.exists()
    assert first.stat().st_mtime_ns == before


def test_a_cache_of_another_number_of_views_is_refused(
    parts: tuple[Views, Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views, encoder, folder = parts
    two = from_folder(tmp_path / "renders", count=2, size=8)
    build((two, encoder, folder))
    monkeypatch.setattr(cache, "GROUP", 2)
    assert build((two, encoder, folder)).read("object0", 1)
    with pytest.raises(ValueError, match="was cached with views 2, not 3; give another"):
        build((views, encoder, folder))
    write_object(tmp_path / "renders" / "another", 9)
    with pytest.raises(ValueError, match="holds other objects"):
        build((from_folder(tmp_path / "renders", count=2, size=8), encoder, folder))


def test_a_cache_of_something_else_is_refused(parts: tuple[Views, Any, Path], tmp_path: Path) -> None:
    views, _, folder = parts
    build(parts)
    other = load_encoder(write_encoder(tmp_path / "other", "registers"), layers=[2, 4])
    with pytest.raises(ValueError, match=r"was cached with encoder encoder-\w+, not other-\w+; give another"):
        build((views, other, folder))
    fewer = load_encoder(tmp_path / "encoder", layers=[4])
    with pytest.raises(ValueError, match=r"with layers \[2, 4\], not \[4\]"):
        build((views, fewer, folder))
    Image.new("RGBA", (8, 8), "red").save(tmp_path / "renders/object0/000.png")
    with pytest.raises(ValueError, match="was cached from another picture of object0"):
        build(parts)
    write_object(tmp_path / "renders" / "another", 9)
    with pytest.raises(ValueError, match="holds other objects"):
        build((from_folder(tmp_path / "renders", count=3, size=8), parts[1], folder))
    sorted(folder.iterdir())[0].write_text("junk")
    with pytest.raises(ValueError, match="is no readable cache"):
        build(parts)


def test_no_room_is_said_before_and_when_it_runs_out(
    parts: tuple[Views, Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    with pytest.raises(ValueError, match=r"could not write .*No space left.* what is cached is kept"):
        build(parts)
    assert not list(parts[2].iterdir())

    def none(path: Path) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(free=10)

    monkeypatch.setattr(cache.shutil, "disk_usage", none)
    with pytest.raises(ValueError, match=r"GB free; cache fewer layers, or encode while training"):
        build(parts)
