"""Training with a rotated code: its two stages from files and from memory, what is saved, continuing, and wrong options."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_novelview_model import write_encoder
from test_novelview_train import changed, losses, weights, write_start
from test_novelview_train import config as config  # the fixture
from torch import Tensor

from distill.files.checkpoint import load_checkpoint
from distill.lab.novel_view import in_memory, memory, stages
from distill.lab.novel_view.config import TrainConfig, check, compose, offset_of
from distill.lab.novel_view.in_memory import recipes
from distill.lab.novel_view.levels import Law
from distill.lab.novel_view.objective import make_sampler
from distill.lab.novel_view.samples import open_views
from distill.lab.novel_view.start import open_pipeline
from distill.lab.novel_view.train import train
from distill.priors.novel_view.code import TurnOptions
from distill.priors.novel_view.features import load_encoder
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.run.journal import Interrupted


@pytest.fixture
def turned(config: TrainConfig) -> TrainConfig:
    return changed(
        config, code=True, tokens=2, draft=8, code_iterations=4, code_batch=4, timestep_sampling="power",
        validation_samples=0,
    )  # fmt: skip


def kept(config: TrainConfig) -> TrainConfig:
    """The same from memory, single precision."""
    return changed(config, in_memory=True, accumulate=1)


@pytest.mark.slow
@pytest.mark.parametrize("latent", [False, True])
def test_the_code_is_trained_first_and_saved_with_the_model(
    turned: TrainConfig, tmp_path: Path, latent: bool
) -> None:
    if latent:
        turned = changed(turned, init=str(write_start(tmp_path / "latent", latent=True)))
    Path(turned.data, "protocol.json").write_text('{"offset": 0.2}')
    begun = open_pipeline(turned, load_encoder(turned.encoder)).model.state_dict()
    model = NovelViewPipeline.load(train(turned))
    assert model.model.turn is not None
    assert model.model.turn.options == TurnOptions(tokens=2, film=True, draft=8)
    assert model.offset == 0.2
    learnt = model.model.state_dict()
    assert begun.keys() == learnt.keys()
    moved = {name for name in learnt if not torch.equal(begun[name], learnt[name])}
    assert {"turn.tokens.weight", "turn.code.encode.0.weight", "unet.conv_in.weight"} <= moved
    # The second stage left the code and its thumbnail as the first had made them.
    folder = Path(turned.output_dir)
    first = load_checkpoint(folder / "code" / "checkpoints")
    assert first is not None and first["update"] == 4
    for name, value in first["model"].items():
        assert torch.equal(learnt[f"turn.{name}"], value)
    assert len(losses(folder / "code")) == len(losses(folder)) == 4


@pytest.mark.parametrize(
    ("tokens", "film", "draft"), [(0, True, 8), (2, False, 8), (2, True, 0), (0, False, 4)]
)
def test_each_way_to_tell_the_unet_is_left_out_alone(
    turned: TrainConfig, tmp_path: Path, tokens: int, film: bool, draft: int
) -> None:
    said = changed(turned, tokens=tokens, film=film, draft=draft)
    pipeline = open_pipeline(said, load_encoder(turned.encoder))
    turn = pipeline.model.turn
    assert turn is not None
    assert (turn.tokens is None, turn.film is None, turn.draft is None) == (not tokens, not film, not draft)
    assert (pipeline.model.token is None) == bool(tokens)
    assert pipeline.model.unet.config.in_channels == (9 if draft else 6)
    again = NovelViewPipeline.load(pipeline.save(tmp_path / "saved"))
    assert again.model.turn is not None and again.model.turn.options == turn.options
    rgb, pose = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.rand(2, 4)
    drawn = [one(rgb, pose, generator=torch.Generator().manual_seed(1), steps=2) for one in (pipeline, again)]
    assert torch.equal(*drawn)


@pytest.mark.slow
def test_either_stage_goes_on_to_the_same_bits(turned: TrainConfig) -> None:
    folder = train(turned).parent
    whole, said = weights(folder), {part: losses(folder / part) for part in ("", "code")}
    # As if it had been killed after the UNet's third update, and then after the code's third.
    for lost in (["checkpoints/step-000004"], ["checkpoints", "code/checkpoints/step-000004"]):
        for name in [*lost, "model"]:
            shutil.rmtree(folder / name)
        train(changed(turned, resume=True))
        assert all(torch.equal(whole[name], value) for name, value in weights(folder).items())
        assert {part: losses(folder / part) for part in said} == said


def stopping(after: int) -> Callable[[], bool]:
    """True from the ``after``-th time on that it is asked."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= after


@pytest.mark.slow
def test_a_training_in_memory_goes_on_to_the_same_bits(
    turned: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(in_memory, "ASK_EVERY", 1)
    said = kept(turned)
    whole = weights(train(said).parent)
    views, held_out = open_views(said).split(said.held_out)
    saved: list[int] = []

    def part(after: int) -> NovelViewPipeline:
        own = changed(said, output_dir=str(tmp_path / "parts"))
        pipeline = open_pipeline(own, load_encoder(own.encoder))
        seen, unseen = (memory.encoded(memory.from_views(one), pipeline.encoder) for one in (views, held_out))
        in_memory.fit(own, pipeline, seen, unseen, asked=stopping(after), saved=lambda _: saved.append(after))
        return pipeline

    with pytest.raises(Interrupted, match="stopped in the code's training; continue with resume=true"):
        part(2)
    assert not saved
    # Two updates of the code are left, and two of the UNet's four are made.
    with pytest.raises(Interrupted, match="stopped in the UNet's training; continue with resume=true"):
        part(4)
    assert saved == [4]
    finished = part(99).model.state_dict()
    assert all(torch.equal(whole[name], value) for name, value in finished.items())
    for stage in ("code", "unet"):
        lines = (tmp_path / "parts" / stage / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [2, 4]


@pytest.mark.slow
def test_a_model_with_a_code_is_trained_on_without_its_first_stage(
    turned: TrainConfig, tmp_path: Path
) -> None:
    encoder = load_encoder(turned.encoder)
    first = open_pipeline(turned, encoder).save(tmp_path / "first")
    whole = NovelViewPipeline.load(first).model.state_dict()
    code = {name: value for name, value in whole.items() if name.startswith("turn.code.")}
    for more in (turned, kept(turned)):
        said = changed(more, init=str(first), output_dir=str(tmp_path / f"more{more.in_memory}"))
        after = weights(train(said).parent)
        assert all(torch.equal(after[name], value) for name, value in code.items())
        assert not (tmp_path / f"more{more.in_memory}" / "code").exists()
    encoder = load_encoder(turned.encoder)
    with pytest.raises(
        ValueError, match=r"the code of the model in init=\S+ has tokens=2, not 3; give the same"
    ):
        open_pipeline(changed(turned, init=str(first), tokens=3), encoder)
    without = changed(turned, code=False, tokens=4, draft=16)
    plain = open_pipeline(without, encoder).save(tmp_path / "plain")
    with pytest.raises(ValueError, match="has no rotated code; leave code=true out, or begin from a text"):
        open_pipeline(changed(turned, init=str(plain)), encoder)


@pytest.mark.slow
def test_a_code_may_be_trained_on_as_well(turned: TrainConfig, tmp_path: Path) -> None:
    first = open_pipeline(turned, load_encoder(turned.encoder)).save(tmp_path / "first")
    whole = NovelViewPipeline.load(first).model.state_dict()
    for more in (turned, kept(turned)):
        folder = tmp_path / f"again{more.in_memory}"
        after = weights(train(changed(more, init=str(first), output_dir=str(folder), code_again=True)).parent)
        moved = {name for name in whole if not torch.equal(after[name], whole[name])}
        assert {"turn.code.encode.0.weight", "turn.draft.projection.weight", "unet.conv_in.weight"} <= moved
        # The mean that the thumbnail begins with is not that of these pictures: the code knows the one that it has.
        assert "turn.draft.mean" not in moved
        assert (folder / "code" / "metrics.jsonl").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 2}, "tokens=2 is made of a rotated code; add code=true"),
        ({"film": False}, "film=False is made of a rotated code; add code=true"),
        (
            {"code": True, "code_again": True, "code_keep": 0.1},
            "code_keep=0.1 needs code_again=true and in_memory=true",
        ),
        ({"code": True, "code_keep": -1.0}, "code_keep must be at least 0, got -1"),
        ({"code_again": True}, "code_again=true trains a rotated code on; add code=true"),
        ({"code": True, "tokens": 0, "film": False, "draft": 0}, "at least one of tokens, film and draft"),
        ({"code": True, "tokens": -1}, "none of them negative"),
        ({"code": True, "code_batch": 0}, "code_iterations, code_batch and code_rate must be positive"),
        ({"timestep_sampling": "power", "low": 0.0}, "positive exponents low and high"),
        ({"timestep_sampling": "power", "until": 0.9, "reach": 0.5}, "0 <= until < reach <= 1"),
        ({"minutes": 3.0}, "minutes=3 needs in_memory=true; give iterations="),
        ({"in_memory": True}, "give accumulate=1, got 4"),
        ({"in_memory": True, "accumulate": 1, "cache": "x"}, "leave cache= out"),
        ({"in_memory": True, "accumulate": 1}, "give precision=bf16 or no"),
        ({"in_memory": True, "accumulate": 1, "precision": "no", "ema": 0.0}, "give ema= above 0"),
        (
            {"in_memory": True, "accumulate": 1, "minutes": 1.0, "code_share": 1.0},
            "code_share within 0 and 1",
        ),
    ],
)
def test_options_that_do_not_go_together_get_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check(changed(TrainConfig(tracker="none"), **options))
    assert "\n" not in str(caught.value)


def test_pictures_in_memory_are_no_latents(turned: TrainConfig, tmp_path: Path) -> None:
    latent = write_start(tmp_path / "latent", latent=True)
    with pytest.raises(ValueError, match="models of pixels; train this one with in_memory=false"):
        train(changed(kept(turned), init=str(latent)))


def test_an_encoder_without_layers_has_no_code(turned: TrainConfig, tmp_path: Path) -> None:
    encoder = load_encoder(write_encoder(tmp_path / "other", "dinov2"), layers=[])
    with pytest.raises(
        ValueError, match="a rotated code reads the encoder's maps: give the encoder some layers"
    ):
        open_pipeline(changed(turned, amalgamation=False), encoder)


def test_the_recipes_are_those_of_the_model_that_ships() -> None:
    """Its card: batches of 1,024 and 256, rates of 1.5e-3 and 1e-3, an exponent that rises from a quarter to three quarters."""
    assert recipes(compose(["recipe=embedded"])) == (stages.CodeRecipe(), stages.UNetRecipe())
    code, unet = recipes(compose(["recipe=embedded-gpu"]))
    assert (code.batch, code.learning_rate, unet.batch, unet.learning_rate) == (1024, 1.5e-3, 256, 1e-3)
    assert unet.law == Law("power", low=0.12, high=0.7, until=0.25, reach=0.75)
    assert (unet.conditioning, unet.final, unet.ema) == (2.0, pytest.approx(0.05), 0.999)


def test_power_law_timesteps_by_number_follow_the_law(config: TrainConfig) -> None:
    """P(t < T/2) is 1/2 to the power 1/p: 1/4 for p = 1/2 at first, and 1/2 for p = 1 at the end."""
    said = changed(config, timestep_sampling="power", low=0.5, high=1.0)
    sampler, g = make_sampler(said, 1000), torch.Generator().manual_seed(0)
    for done, share in ((0.0, 0.25), (1.0, 0.5)):
        t: Tensor = sampler(done, 20_000, g)
        assert t.min() >= 0 and t.max() <= 999
        assert (t < 500).float().mean().item() == pytest.approx(share, abs=0.012)


def test_the_offset_is_that_of_the_renders(config: TrainConfig) -> None:
    assert offset_of(config) == 0 and offset_of(changed(config, offset=0.1)) == 0.1
    Path(config.data, "protocol.json").write_text('{"offset": 0.25}')
    assert offset_of(config) == 0.25
    with pytest.raises(ValueError, match=r"offset=0.1, but \S+protocol.json says 0.25; leave offset= out"):
        offset_of(changed(config, offset=0.1))


@pytest.mark.parametrize("earlier", [0.0, 540.0])
def test_an_interrupted_code_does_not_lengthen_the_training(
    earlier: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of 60 minutes, what the code took before the interruption is spent, too."""
    left: list[float] = []

    def fit_unet(*given: Any) -> bool:
        left.append(given[-1])
        return True

    monkeypatch.setattr(in_memory, "trains_code", lambda _: True)
    monkeypatch.setattr(in_memory, "_fit_code", lambda *_: earlier)
    monkeypatch.setattr(in_memory, "_fit_unet", fit_unet)
    config: Any = SimpleNamespace(output_dir=str(tmp_path), minutes=60.0)
    pipeline: Any = SimpleNamespace(model=SimpleNamespace(turn=object()))
    nothing: Any = None
    in_memory.fit(config, pipeline, nothing, nothing, asked=lambda: False)
    assert left[0] == pytest.approx(3600 - earlier, abs=1)
