"""The watchdog: hand-made looks, healthy runs that it leaves alone, and a collapsed run from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.cli import main
from distill.contracts import Render, Step
from distill.run import watchdog
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config
from distill.run.watchdog import Collapsed, Sight, kind_of, look, patience, verdict, watch

NAN = float("nan")


def picture(rgb: torch.Tensor, opacity: torch.Tensor) -> Render:
    return Render(rgb, opacity, torch.zeros_like(opacity))


def test_a_look_measures_the_picture_with_the_most_contrast() -> None:
    """Two pictures of 2 x 2: grey all over; and of two blues, 0.25 and 0.5. Opacities 0, 0.5 and 1, by hand: mean 0.5."""
    rgb = torch.full((2, 2, 2, 3), 0.75)
    rgb[1, ..., 2] = torch.tensor([[0.25, 0.5], [0.5, 0.5]])
    opacity = torch.tensor([[[0.0, 1.0], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]])[..., None]
    assert look(30, picture(rgb, opacity)) == Sight(30, opacity=0.5, outline=1.0, contrast=0.25)


@pytest.mark.parametrize(
    ("sight", "of_volume", "of_picture"),
    [
        (Sight(0, 0.2, 1.0, 0.6), "", ""),
        (Sight(0, 0.0, 0.0, 0.0), "empty", "one colour"),
        (Sight(0, 0.0009, 1.0, 0.6), "empty", ""),  # a speck
        (Sight(0, 0.0011, 1.0, 0.6), "", ""),
        (Sight(0, 0.93, 1.0, 0.6), "full", ""),  # a full cube, and corners that look past it
        (Sight(0, 1.0, 0.0, 0.6), "full", ""),  # a picture is full all the time
        (Sight(0, 0.4, 0.2, 0.001), "one colour", "one colour"),  # fog of the background's colour
        (Sight(0, 0.4, 1.0, 0.001), "", "one colour"),  # a white cube on white has an outline
        (Sight(0, NAN, 1.0, 0.6), "not finite", "not finite"),
        (Sight(0, 0.2, 1.0, float("inf")), "not finite", "not finite"),
    ],
)
def test_what_is_wrong_with_one_look(sight: Sight, of_volume: str, of_picture: str) -> None:
    assert (kind_of(sight), kind_of(sight, volume=False)) == (of_volume, of_picture)


def looks(*opacities: float) -> list[Sight]:
    """One each ten steps, from step 10 on."""
    return [Sight(10 * i, value, 1.0, 0.6) for i, value in enumerate(opacities, start=1)]


def test_the_same_must_be_wrong_for_long_enough() -> None:
    """Steps 10 to 110 span 100 steps, 10 to 100 only 90; a healthy look, or another kind of wrong, begins again."""
    assert verdict(looks(*[0.0] * 11), 100) == "empty"
    assert verdict(looks(*[0.0] * 10), 100) == ""
    assert verdict(looks(0.3, *[0.0] * 11), 100) == "empty"
    assert verdict(looks(*[0.0] * 5, 0.3, *[0.0] * 10), 100) == ""
    assert verdict(looks(*[0.0] * 11, 0.3), 100) == ""
    assert verdict(looks(*[1.0] * 5, *[0.0] * 8), 100) == ""
    assert verdict(looks(*[NAN] * 11), 100) == "not finite"
    assert verdict([], 100) == ""


def test_long_runs_are_given_a_twentieth_of_their_steps() -> None:
    assert [patience(n) for n in (1, 400, 2000, 2001, 10_000)] == [100, 100, 100, 101, 500]


#: The widest that 65 recorded runs of the embedded prior went, 0.068 to 0.64 with a contrast of 0.6 and more, and beyond.
HEALTHY = st.builds(
    Sight, st.integers(0, 10_000), st.floats(0.01, 0.85), st.floats(0.5, 1), st.floats(0.05, 1)
)


@given(st.lists(HEALTHY, max_size=40), st.integers(0, 100))
def test_healthy_looks_stop_no_run(seen: list[Sight], steps: int) -> None:
    assert verdict(seen, steps) == "" and verdict(seen, steps, volume=False) == ""


def test_a_run_is_watched_step_by_step() -> None:
    """Looks are at steps 10, 20, ...: of pictures that are empty from step 35 on, the first is at 40, and 140 is 100 later."""
    after = watch(400, volume=True)
    there, empty = torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4, 1)
    thing = empty.clone()
    thing[0, 1:3, 1:3] = 1.0
    for step in range(1, 140):
        after(step, picture(there, thing if step < 35 else empty))
    with pytest.raises(
        Collapsed, match="collapsed at step 140 of 400: empty for 100 steps: no pixel shows anything; try"
    ) as said:
        after(140, picture(there, empty))
    assert "\n" not in str(said.value) and str(said.value).endswith("watchdog=false continues")


def test_each_of_several_scenes_is_watched_for_itself() -> None:
    """Of three scenes that are drawn in turn, the second is empty: its own 110th step is step 329, and others' looks count for nothing."""
    after = [watch(400, volume=True) for _ in range(3)]
    rgb, empty = torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4, 1)
    thing = empty.clone()
    thing[0, 1:3, 1:3] = 1.0
    with pytest.raises(Collapsed, match="collapsed at step 329 of 400: empty for 100 steps"):
        for step in range(1, 401):
            which = (step - 1) % 3
            after[which](step, picture(rgb, empty if which == 1 else thing))


def test_a_run_of_particles_says_which_one_a_step_has_trained() -> None:
    """By the visits that the particles count themselves."""
    job = assemble(compose_config(["prompt=a red mug", "particles=3", "render.size=8", "device=cpu"]))
    visits = torch.zeros(3, dtype=torch.long)
    for step in range(12):
        job.state.scene.update(Step(step, step / 12), job.state.optimiser, job.state.generator)
        visits[job.drawn()] += 1
    assert torch.equal(job.state.scene.state_dict()["visits"], visits) and (visits > 0).all()


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_collapsed_run_ends_and_is_marked_and_goes_on_only_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watchdog, "PATIENCE", 2)
    monkeypatch.setattr(watchdog, "EVERY", 1)
    empty = [
        "a red mug", "scene.blob_scale=-50", "scene.blob_radius=1000", "iterations=5", "render.batch=1", "render.size=8",
        "log.tensorboard=false", "log.preview_every=0", "export.resolution=8", "export.picture_size=16", "export.frames=1",
        "output_dir=run",
    ]  # fmt: skip
    assert command(*empty) == 1
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("distill: error:")]
    assert "collapsed at step 3 of 5: empty for 2 steps" in line
    said = json.loads(Path("run/manifest.json").read_text())
    assert (said["state"], said["step"]) == ("collapsed", 3) and said["why"] in line
    assert not Path("run/report.html").exists()
    before = Path("run/metrics.jsonl").read_text()
    assert command(*empty, "resume=true") == 1
    assert (
        "collapsed at step 3 of 5" in capsys.readouterr().err
        and Path("run/metrics.jsonl").read_text() == before
    )
    assert command(*empty, "resume=true", "watchdog=false") == 1  # to the end, which has no surface
    assert json.loads(Path("run/manifest.json").read_text())["state"] == "failed"
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 5
