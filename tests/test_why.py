"""``--why`` tells the truth about where a value comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_run import command

from distill.run.config.compose import compose_config
from distill.run.config.why import explain_options

CASES = [
    # option, words, value, what sets it, what does not, in order
    ("guidance.scale", [], "2.0", "tuned/guidance/embedded_sds.yaml:3", ["sds.py"]),
    ("guidance.scale", ["prompt=a hamburger"], "5", "guidance.scale=5 (follows from prior=things)", ["embedded_sds.yaml:3", "sds.py"]),
    ("guidance.scale", ["preset=none"], "100.0", "sds.py", []),
    ("guidance.scale", ["prior=sd-3-medium"], "7.0", "tuned/guidance/flow_sds.yaml:3", ["sds.py"]),
    ("guidance.scale", ["guidance.scale=5"], "5", "guidance.scale=5 (command line)", ["embedded_sds.yaml:3", "sds.py"]),
    ("guidance.scale", ["guidance=tp_sds"], "2.0", "embedded_sds.yaml:3", ["sds.py"]),
    ("guidance.rank", ["guidance=vsd"], "4", "vsd.py", []),
    ("guidance.scale.start", ["guidance.scale={start:9,end:1}"], "{start: 9, end: 1}", "(command line)", ["embedded_sds", "sds.py"]),
    ("guidance.interval", ["experiment=lucid"], "{start: 0.1, end: 0.08, to_fraction: 0.3}", "experiment/lucid.yaml:8", ["ism.py"]),
    ("guidance.interval", ["experiment=lucid", "guidance.interval.start=0.2"], "{start: 0.2, end: 0.08, to_fraction: 0.3}",
     "guidance.interval.start=0.2 (command line)", ["lucid.yaml:8", "ism.py"]),
    ("timesteps.t_max", ["experiment=csd_refine"], "0.5", "experiment/csd_refine.yaml:13", ["timesteps.py"]),
    ("timesteps.t_min", [], "0.96", "timesteps.t_min=0.96 (follows from prior=embedded)", ["embedded_annealed.yaml:3", "timesteps.py"]),
    ("timesteps.t_max_end", [], "0.5", "tuned/timesteps/embedded_annealed.yaml:5", ["timesteps.py"]),
    ("iterations", ["prior=sdxl"], "10000", "preset/none.yaml:4", ["schema.py"]),
    ("iterations", ["prior=sdxl", "iterations=7"], "7", "iterations=7 (command line)", ["none.yaml:4", "schema.py"]),
    ("iterations", ["image=p.png"], "300", "preset/embedded_image.yaml:6", ["preset/image.yaml:7", "schema.py"]),
    ("scene.mlp_lr", ["prior=flux.1-dev"], "0.001", "tuned/scene/latent_hash_grid.yaml:13", ["nerf.py"]),
    ("penalties.sparsity", ["prior=if-xl"], "1.0", "tuned/scene/latent_hash_grid.yaml:15", ["schema.py"]),
    ("penalties.sparsity", ["penalties={sparsity:3}"], "3", "penalties={sparsity:3} (command line)", ["schema.py"]),
    ("scene.levels", [], "12", "nerf.py", []),
    ("cameras.distance", [], "[3.0, 3.4]", "cameras.py", []),
    ("seed", [], "0", "schema.py", []),
    ("perp_neg.enabled", [], "false", "schema.py", []),
    ("guidance", ["experiment=csd"], "csd", "experiment/csd.yaml:5", ["config.yaml:4: sds"]),
    ("guidance", ["experiment=dreamfusion", "guidance=csd"], "csd", "guidance=csd (command line)",
     ["dreamfusion.yaml:4: sds", "config.yaml:4: sds"]),
    ("guidance", ["prompt=x", "image=p.png"], "mix", "guidance=mix (follows from a prompt with image=)",
     ["image.yaml:4: sds", "config.yaml:4: sds"]),
    ("timesteps", [], "annealed", "preset/embedded.yaml:5", ["config.yaml:5: uniform"]),
    ("timesteps", ["guidance=tp_sds"], "dreamtime", "timesteps=dreamtime (follows from guidance=tp_sds)", ["embedded.yaml:5"]),
    ("timesteps", ["experiment=tp_sds"], "dreamtime", "experiment/dreamtime.yaml:5", ["embedded.yaml:5", "config.yaml:5"]),
    ("preset", ["prior=sdxl"], "latent", "preset=latent (follows from prior=sdxl)", ["config.yaml:8: embedded"]),
    ("experiment", ["experiment=csd"], "csd", "experiment=csd (command line)", ["config.yaml:12: null"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "words", "value", "winner", "losers"), CASES, ids=lambda each: str(each)[:40]
)
def test_a_value_is_traced_to_what_sets_it(
    option: str, words: list[str], value: str, winner: str, losers: list[str]
) -> None:
    given = (
        words
        if any(word.startswith(("prompt=", "image=")) for word in words)
        else ["prompt=a red mug", *words]
    )
    lines = explain_options([option], given).splitlines()
    paragraph = [
        lines[0],
        *(line for line in lines[1 : next((i for i, x in enumerate(lines[1:], 1) if x[0] != " "), None)]),
    ]
    name = option.removesuffix(".start")
    assert paragraph[0] == f"{name} = {value}"
    assert winner in paragraph[1] and paragraph[1].startswith("  set by ")
    rest = [line for line in paragraph[2:] if line.startswith("  not ")]
    for loser, line in zip(losers, rest[: len(losers)], strict=True):
        assert loser in line
    config = compose_config(given)
    if "." in name:
        found = OmegaConf.select(config, name)
        plain = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
        assert value in (str(plain), str(plain).replace("'", ""), str(plain).lower())


def test_a_file_of_one_s_own_is_found_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /guidance: tp_sds\n\niterations: 33\nguidance:\n  scale: 12\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    line = ["a red mug", "--config-dir", str(tmp_path), "+experiment=mine", "guidance.weighting=uniform"]
    assert command(*line, "--why", "iterations", "--why=guidance", "--why", "timesteps") == 0
    out = capsys.readouterr().out
    mine = f"{tmp_path}/experiment/mine.yaml"
    assert f"iterations = 33\n  set by {mine}:5\n" in out
    assert f"guidance.scale = 12\n  set by {mine}:7\n" in out
    assert "guidance.weighting = uniform\n  set by guidance.weighting=uniform (command line)" in out
    # The file chose the alias, which stands for both.
    assert f"guidance = sds\n  set by guidance=sds (follows from an alias)\n  not    {mine}:3: tp_sds" in out
    assert "timesteps = dreamtime" in out


def test_a_group_lists_its_options() -> None:
    text = explain_options(["optimiser", "guidance"], ["prompt=x"])
    for name in ("optimiser.betas", "optimiser.ema", "guidance =", "guidance.scale", "guidance.weighting"):
        assert f"\n{name}" in f"\n{text}"


@pytest.mark.parametrize(
    ("name", "said"), [("guidance.scael", "did you mean 'guidance.scale'"), ("nothing", "unknown option")]
)
def test_an_unknown_option_is_one_line(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("a red mug", "--why", name) == 2
    assert said in capsys.readouterr().err


def test_why_needs_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("a red mug", "--why") == 2
    assert "--why needs a value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["a teddybear"], "'a teddybear' is read as 'a teddy bear'"),
        (["two green chairs"], "'two' left out"),
        (["a dragon"], "prior=things does not know 'dragon'"),
        (["a red mug"], None),
        (["a dragon on a house", "prior=sd-2.1-base"], None),
        (["a red mug", "source_prompt=a dragon"], None),  # which is another option
    ],
)
def test_a_prompt_is_shown_as_the_prior_reads_it(words: list[str], note: str | None) -> None:
    prompt, *options = words
    lines = explain_options(["prompt"], [f"prompt={prompt}", *options]).splitlines()
    notes = [line for line in lines if line.startswith("  note   ")]
    assert [str(note) in line for line in notes] == ([] if note is None else [True])
