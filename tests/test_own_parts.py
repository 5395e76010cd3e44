"""Runs with parts of one's own: chosen by name, looked at before training, and resumed."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_examples import load
from test_run import OPTIONS

import distill
from distill import guidance
from distill.cameras import orbit
from distill.conditions import prompts
from distill.contracts import Learner
from distill.files.checkpoint import load_checkpoint
from distill.guidance import made_for_prior, mix, terms
from distill.lab.comparison.cost import measure_cost
from distill.parts.registered import homes
from distill.priors.exact import gaussian
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config
from distill.run.folder.folders import claim
from distill.run.journal import Interrupted
from distill.samplers import cameras, timesteps


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for door in (guidance, timesteps, cameras):
        monkeypatch.setattr(door, "_registered", {})


def falling(prior: Any, *, power: float = 1.0) -> Any:
    """Fall from 900, and draw one of ten timesteps.

    Args:
        prior: is not asked.
        power: of what is left of training.
    """

    def sample(progress: float, batch: int, generator: torch.Generator) -> torch.Tensor:
        return int(900 * (1 - progress) ** power) + torch.randint(10, (batch,), generator=generator)

    return sample


def above(*, elevation: float = 30.0) -> Any:
    def sample(progress: float, batch: int, generator: torch.Generator) -> Any:
        turned = 360 * torch.rand(batch, generator=generator)
        return orbit(turned, torch.full((batch,), elevation), 3.0, 40.0, torch.zeros(batch, 3))

    return sample


@made_for_prior
class Averaging:
    """SDS's difference over its running size, which a step changes."""

    stop_at = 0

    def __init__(self, prior: Any, generator: Any, priors: Any, *, decay: float = 0.5) -> None:
        self.decay, self.size, self.done = decay, torch.ones(()), 0

    def __call__(self, prior: Any, x: Any, cond: Any, t: Any, noise: Any) -> Any:
        text, uncond = terms.predict(prior, terms.add_noise(prior, x, t, noise), t, cond, "text", "uncond")
        return (text - uncond) / self.size

    def learn(self, prior: Any, x: Any, cond: Any, generator: Any, at_once: Any = None) -> float:
        self.done += 1
        if self.done == self.stop_at:
            raise KeyboardInterrupt
        self.size = torch.lerp(x.square().mean().sqrt(), self.size, self.decay)
        return float(self.size)

    def save(self, folder: Path) -> None:
        (folder / "size.json").write_text(json.dumps(float(self.size)))

    def state_dict(self) -> dict[str, Any]:
        return {"size": self.size, "done": self.done}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.size, self.done = saved["size"], saved["done"]


def test_the_examples_law_falls_along_a_cosine() -> None:
    """cos^2(pi / 4) = 1/2 half way, of the way from 100 to 900."""
    law = load("custom_timesteps").cosine
    draw = law(gaussian({"": torch.zeros(3, 4, 4)}, std=0.5), t_min=0.1, t_max=0.9, power=2.0)
    drawn = [draw(progress, 3, torch.Generator()).tolist() for progress in (0.0, 0.5, 1.0)]
    assert drawn == [[900] * 3, [500] * 3, [100] * 3]


def test_a_law_has_its_options_and_schedules_as_the_librarys_have(tmp_path: Path) -> None:
    timesteps.register(falling)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /timesteps: falling\ntimesteps:\n  power: 3\n"
    )
    words = ["prompt=a red mug", "+experiment=mine"]
    assert compose_config(words, [str(tmp_path)]).timesteps.power == 3
    moving = ["prompt=a red mug", "timesteps=falling", "timesteps.power={start:1,end:3}"]
    config = compose_config(moving)
    assert set(config.timesteps) == {"_target_", "_partial_", "power"}
    job = assemble(config, distill.load_prior("embedded"))
    drawn = job.timesteps(0.5, 50, torch.Generator().manual_seed(0))
    assert {*(drawn - 900 // 4).tolist()} == {*range(10)}  # at half way the power is 2


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("timesteps=fallin", "unknown timesteps 'fallin'; did you mean 'falling'\\? there are annealed, .*, falling"),
        ("cameras=abov", "unknown cameras 'abov'; did you mean 'above'\\? there are ranges, groups, above"),
        ("guidance=zzz", "unknown guidance 'zzz'; there are asd, .*, vsd; one of your own is known only in the script that registers it"),
        ("guidance=./mine.py", r"unknown guidance '\./mine\.py'; there are asd, .* script that registers it"),
        ("scene=/home/me/mine.py", "unknown scene '/home/me/mine.py'; there are hash_grid, .* script that registers it"),
        ("experiment=mine/crsp", "unknown experiment 'mine/crsp'; there are csd, "),
        ("timesteps.powr=1", "unknown option 'timesteps.powr'; did you mean 'timesteps.power'\\?"),
        ("timesteps.t_mx=1", "unknown option 'timesteps.t_mx'; timesteps=falling has power; 'distill --options' lists"),
    ],
)  # fmt: skip
def test_an_unknown_name_has_the_nearest_one_beside_it(word: str, said: str) -> None:
    timesteps.register(falling)
    cameras.register(above)
    with pytest.raises(ValueError, match=said):
        compose_config(["prompt=a red mug", "timesteps=falling", word])


def test_a_group_of_several_levels_is_told_from_its_name(tmp_path: Path) -> None:
    (tmp_path / "lab/lights").mkdir(parents=True)
    (tmp_path / "lab/lights/bright.yaml").write_text("# @package _global_\niterations: 7\n")
    assert compose_config(["prompt=a red mug", "+lab/lights=bright"], [str(tmp_path)]).iterations == 7
    with pytest.raises(ValueError, match="unknown lab/lights 'brigt'; did you mean 'bright'"):
        compose_config(["prompt=a red mug", "+lab/lights=brigt"], [str(tmp_path)])


def test_an_experiments_file_that_does_not_say_where_its_options_belong_is_told(tmp_path: Path) -> None:
    """And the one in the documentation does."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/crisp.yaml").write_text("iterations: 3\n")
    words = ["prompt=a red mug", "+experiment=crisp"]
    with pytest.raises(ValueError, match=r"must begin with the line '# @package _global_', .*; add it"):
        compose_config(words, [str(tmp_path)])
    page = (Path(__file__).parents[1] / "docs/recipes.md").read_text()
    (tmp_path / "experiment/crisp.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    config = compose_config(words, [str(tmp_path)])
    assert config.iterations == 600 and config.guidance._target_ == "distill.guidance.csd.csd"


def test_a_run_of_a_script_is_resumed_with_the_script(tmp_path: Path) -> None:
    config = compose_config(["prompt=a red mug", f"output_dir={tmp_path}/run"])
    folder = claim(config)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("distill.guidance.sds.sds", "__main__.my_own"))
    resumed = compose_config(["prompt=a red mug", f"output_dir={tmp_path}/run", "resume=true"])
    with pytest.raises(
        ValueError,
        match=r"made with guidance=my_own \(__main__\.my_own\), .* resume it with that script instead of distill",
    ):
        claim(resumed)


def of(drawn: Any) -> Any:
    return lambda progress, batch, generator: drawn(batch)


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        (lambda batch: torch.rand(batch), r"integers of shape \[4\] on the CPU, got \[4\] of torch.float32 on cpu"),
        (lambda batch: torch.tensor(3), r"integers of shape \[4\] on the CPU, got \[\] of torch.int64"),
        (lambda batch: torch.ones(batch) > 0, r"integers of shape \[4\] on the CPU, got \[4\] of torch.bool on cpu"),
        (lambda batch: torch.ones(batch).to(torch.uint8), r"int64 or int32 integers .* got \[4\] of torch.uint8"),
        (lambda batch: 3, r"integers of shape \[4\] on the CPU, got int"),
        (lambda batch: torch.full((batch,), 1000), r"timesteps must lie in \[0, 999\], got 1000 to 1000"),
    ],
)  # fmt: skip
def test_what_a_law_draws_is_looked_at_before_training(
    drawn: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_config(["prompt=a red mug", "timesteps=uniform"])
    monkeypatch.setattr(timesteps, "uniform", lambda prior, **_: of(drawn))
    with pytest.raises(ValueError, match=said):
        assemble(config, distill.load_prior("embedded"))


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        (lambda batch: above()(0.0, batch - 1, torch.Generator()), "Cameras, 4 for this batch, got 3"),
        (lambda batch: torch.zeros(batch, 4, 4), "Cameras, 4 for this batch, got Tensor"),
    ],
)
def test_what_a_camera_sampler_draws_is_looked_at_before_training(
    drawn: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_config(["prompt=a red mug"])
    monkeypatch.setattr(cameras, "ranges", lambda **_: of(drawn))
    with pytest.raises(ValueError, match=said):
        assemble(config, distill.load_prior("embedded"))


@pytest.mark.slow
def test_a_run_of_ones_own_parts_continues_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its law, its cameras and what its loss keeps are those of a run that was not stopped."""
    guidance.register(Averaging)
    timesteps.register(falling)
    cameras.register(above)
    options: dict[str, Any] = {
        **OPTIONS, "iterations": 4, "guidance": "averaging", "timesteps": "falling", "cameras": "above", "log.checkpoint_every": 1,
        "export.enabled": False,
    }  # fmt: skip
    distill.generate("a red mug", output_dir=tmp_path / "whole", **options)
    monkeypatch.setattr(Averaging, "stop_at", 3)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        distill.generate("a red mug", output_dir=tmp_path / "parted", **options)
    monkeypatch.setattr(Averaging, "stop_at", 0)
    distill.generate("a red mug", output_dir=tmp_path / "parted", resume=True, **options)
    whole, parted = (
        load_checkpoint(tmp_path / name / "checkpoints", torch.device("cpu")) for name in ("whole", "parted")
    )
    assert whole is not None and parted is not None
    assert whole["learner"]["done"] == parted["learner"]["done"] == 4
    assert torch.equal(whole["learner"]["size"], parted["learner"]["size"])
    for name, value in whole["scene"].items():
        assert torch.equal(value, parted["scene"][name]), name


def test_a_mixture_gives_each_learner_a_folder_to_save_in(tmp_path: Path) -> None:
    guidance.register(Averaging)
    prior = distill.load_prior("embedded")
    made = guidance.mix.mix(prior, torch.Generator(), terms=[{"loss": "sds"}, {"loss": "averaging"}])
    assert isinstance(made, Learner)
    made.save(tmp_path)
    assert json.loads((tmp_path / "term-1/size.json").read_text()) == 1


@made_for_prior
class Forgetful:
    """It keeps a state, and nothing would save it."""

    def __init__(self, prior: Any, generator: Any, priors: Any, *, scale: float = 1.0) -> None: ...

    def __call__(self, prior: Any, x: Any, cond: Any, t: Any, noise: Any) -> Any: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None: ...


@pytest.mark.parametrize(
    "words", [["guidance=forgetful"], ["guidance=mix", "guidance.terms=[{loss: forgetful}]"]]
)
def test_a_state_that_no_checkpoint_would_hold_is_refused(words: list[str]) -> None:
    guidance.register(Forgetful)
    config = compose_config(["prompt=a red mug", *words])
    with pytest.raises(
        ValueError, match="Forgetful lacks learn and save, without which a checkpoint does not hold"
    ):
        assemble(config, distill.load_prior("embedded"))


@pytest.mark.slow
def test_what_a_loss_of_a_module_costs_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process imports the module; what the script itself registers it does not know, and says so."""
    (tmp_path / "halved.py").write_text(
        "from distill.samplers import timesteps\n\n\n@timesteps.register\ndef halved(prior, *, t_max: float = 0.5):\n"
        "    return timesteps.uniform(prior, t_max=t_max)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    __import__("halved")
    options = {"guidance": "csd", "timesteps": "halved", "render.size": 16, "render.batch": 1}
    found = measure_cost(options, "a red mug")
    assert all(math.isfinite(value) and value > 0 for value in (found["step_ms"], found["peak_mib"]))
    monkeypatch.setattr("distill.lab.comparison.cost.homes", {"__main__"})
    with pytest.raises(
        RuntimeError, match=r"unknown timesteps 'halved'; .* register it in a module that the script imports"
    ):
        measure_cost(options, "a red mug")


def test_where_parts_were_registered_is_known() -> None:
    timesteps.register(falling)
    assert falling.__module__ in homes


def test_a_file_of_losses_without_its_loss_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "my_loss.py").write_text("def other(prior, x, cond, t, noise): ...\n")
    monkeypatch.setattr(guidance, "__path__", [*guidance.__path__, str(tmp_path)])
    assert compose_config(["prompt=a red mug"]).guidance.scale == 2
    assert "left out" in caplog.text
    with pytest.raises(
        ValueError, match=r"my_loss\.py: it has no loss my_loss; give the function the file's name"
    ):
        compose_config(["prompt=a red mug", "guidance=my_loss"])


@guidance.needs_prompt("source")
def editing(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    return scale * (x - noise)


@guidance.needs_prompt("source", option="share")
def partly(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, share: float = 0.0) -> Any:
    return share * (x - noise)


@pytest.mark.parametrize(
    ("words", "without", "beside"),
    [
        (["guidance=editing"], "editing needs a second prompt", ""),
        (["guidance=partly"], "", "source_prompt=a blue mug would do nothing"),
        (["guidance=partly", "guidance.share=1"], "partly with share coefficients needs a second prompt", ""),
        (["guidance=partly", "guidance.share={start:0,end:1,to_step:9}"], "partly with share coeff", ""),
        (["guidance=mix", "guidance.terms=[{loss:sds},{loss:editing}]"], "editing needs a second prompt", ""),
        (["guidance=mix", "guidance.terms=[{loss:sds},{loss:partly}]"], "", "would do nothing"),
        (["guidance=sds"], "", "source_prompt=a blue mug would do nothing"),
    ],
)
def test_a_marked_loss_has_the_source_prompt_as_the_librarys_editing_losses_have(
    words: list[str], without: str, beside: str
) -> None:
    """It is refused without its second prompt and taken with it; where the mark's option is 0, the other way round."""
    for loss in (editing, partly):
        guidance.register(loss)
    for options, said in ((words, without), ([*words, "source_prompt=a blue mug"], beside)):
        refused = contextlib.nullcontext() if not said else pytest.raises(ValueError, match=said)
        with refused:
            compose_config(["prompt=a red mug", *options])


def test_a_marked_loss_is_refused_where_the_prior_knows_no_words() -> None:
    for loss in (editing, partly):
        guidance.register(loss)
    with pytest.raises(ValueError, match="compares texts; add a prompt, or choose guidance=sds"):
        compose_config(["image=mug.png", "guidance=editing"])
    assert compose_config(["image=mug.png", "guidance=partly"]).guidance.share == 0
    prior = gaussian({text: torch.zeros(3, 4, 4) for text in ("", prompts.PICTURED)}, std=0.5)
    object.__setattr__(prior, "words", False)
    words = ["prompt=a red mug", "image=mug.png", "guidance=mix", "source_prompt=a mug"]

    def own(loss: str) -> Any:
        term = {"loss": loss, "prior": "novel_view"}
        compose_config([*words, f"guidance.terms=[{{loss:editing}},{{loss:{loss},prior:novel_view}}]"])
        return mix.own_condition("terms[1]", term, prior, prior, "auto")

    assert own("partly") is not None
    with pytest.raises(ValueError, match="editing needs prompts, and novel_view knows none"):
        own("editing")
