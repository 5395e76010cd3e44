"""Words of a command line that name nothing, or something inside an option of one value: refused in one line, never taken in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from distill import cli, guidance
from distill.options import SCHEDULE_FIELDS, numbers
from distill.run.config.compose import compose_config
from distill.run.config.known import known_options
from distill.run.config.mistakes import option_around, takes_list, takes_schedule
from distill.run.config.plugins import plugins
from distill.run.config.schema import PARTS


def error_of(*words: str, folders: tuple[str, ...] = ()) -> str:
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        compose_config(["prompt=a red mug", *words], folders)
    return str(caught.value)


def line_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    return said.strip().removeprefix("distill: error: ")


GROUPS = {option.rpartition(".")[0] for option in known_options()} | {*PARTS, "earlier"}
#: Every option of a run that is no group, and those of the parts that are chosen by default.
OPTIONS = [option for option in known_options() if option not in GROUPS]
OWN = [f"{group}.{name}" for group, chosen in (("guidance", "sds"), ("timesteps", "uniform"), ("cameras", "ranges"))
       for name in numbers(plugins()[group][chosen])]  # fmt: skip


@pytest.mark.parametrize("option", [*OPTIONS, *OWN])
def test_every_option_of_one_value_refuses_what_is_put_inside_it(option: str) -> None:
    said = error_of(f"{option}.nothing=1")
    assert said.startswith((f"{option} takes one value and has no options of its own, got {option}.nothing",
                            f"{option} is a list, which is written whole, got {option}.nothing=1; write {option}=["))  # fmt: skip
    assert takes_list(option) == ("is a list" in said)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("prior.dtype=float32", "did you mean prior_options.dtype=float32?"),
        ("prior.loras=[a]", "did you mean prior_options.loras=[a]?"),
        ("++prior.dtype=float32", "did you mean prior_options.dtype=float32?"),
        ("prior.options=1", "what belongs to it are the options of prior_options"),
        ("prior.x=1", "what belongs to it are the options of prior_options"),
        ("image.elevation_deg=20", "did you mean reference.elevation_deg=20?"),
        ("view.port=8000", "did you mean view_port=8000?"),
        ("guidance.scale.start=1", "a schedule is written whole, as guidance.scale={start:1,end:0}, got guidance.scale.start"),
        ("seed.start=1", "seed takes one value and has no options of its own, got seed.start=1"),
        ("optimiser.betas.x=0.5", "optimiser.betas is a list, which is written whole"),
        ("optimiser.betas.2=0.5", "write optimiser.betas=[...]"),
        ("cameras.elevation_deg.start=5", "write cameras.elevation_deg=[...]"),
        ("cameras.elevation_deg.2=5", "write cameras.elevation_deg=[...]"),
        ("stages.0=field", "write stages=[...]"),
        ("export.formats.0=glb", "write export.formats=[...]"),
        ("preset.x=1", "preset takes a name and has no options of its own"),
        ("+experiment.x=1", "experiment takes a name and has no options of its own"),
    ],
)  # fmt: skip
def test_what_was_meant_is_named(word: str, said: str) -> None:
    assert said in error_of(word)


def test_what_is_inside_a_schedule_or_a_list_that_is_there_can_be_set() -> None:
    config = compose_config(
        ["prompt=x", "guidance.scale={start:9,end:3}", "guidance.scale.end=5", "optimiser.betas.0=0.5", "cameras.elevation_deg.0=5"]
    )  # fmt: skip
    assert config.guidance.scale == {"start": 9, "end": 5}
    assert config.optimiser.betas == [0.5, 0.99] and config.cameras.elevation_deg[0] == 5
    assert takes_schedule("penalties.sparsity") and not takes_schedule("seed") and "end" in SCHEDULE_FIELDS
    assert [option_around(name) for name in ("prior.dtype", "mesh.file", "scene.levels", "scene.levels.x")] == [
        "prior", "", "", "scene.levels",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        (["+output_dir=x"], "output_dir", "x"),
        (["+export.formats=[glb]"], "export.formats", ["glb"]),
        (["+render={batch:2}"], "render.batch", 2),
        (["+guidance={scale:5}"], "guidance.scale", 5),
        (["guidance=mix", "++guidance.terms.1.weight=2"], "guidance.terms[1].weight", 2),
        (["cameras.elevation_deg=[{start:1,end:2},30]", "cameras.elevation_deg.0.end=5"], "cameras.elevation_deg[0].end", 5),
    ],
)  # fmt: skip
def test_what_hydra_adds_to_options_is_taken(words: list[str], option: str, value: object) -> None:
    assert OmegaConf.select(compose_config(["prompt=x", *words]), option) == value


def test_files_of_the_user_s_own_for_a_group_of_options_are_added(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export/web.yaml").write_text("faces: 500\n")
    assert compose_config(["prompt=x", "+export=web"], [str(tmp_path)]).export.faces == 500
    assert error_of("export=web", folders=(str(tmp_path),)) == (
        "export has no file yet that another could replace; a file of your own is added with +export=NAME"
    )


def furnished(  # type: ignore[no-untyped-def]
    prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, bare=(1, 2), unsaid=None, many: Sequence[float] = (1.0, 2.0),
    few: list[int] | None = None, by_name: Mapping[str, list[int]] | None = None, plain: dict | None = None, thing: object = None,
) -> Any:  # fmt: skip
    return x


@pytest.mark.parametrize(
    "word",
    ["bare.0=3", "many.1=3.5", "by_name.a=[1]", "plain.a=1", "thing.a=1", "unsaid.a=1"],
)
def test_what_is_inside_an_option_of_the_user_s_own_part_can_be_set(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guidance, "_registered", {})
    guidance.register(furnished)
    name, _, value = f"guidance.{word}".partition("=")
    config = compose_config(["prompt=x", "guidance=furnished", f"++{name}={value}"])
    assert str(OmegaConf.select(config, name)) == value
    assert "guidance.few is a list, which is written whole" in error_of(
        "guidance=furnished", "guidance.few.x=1"
    )


@pytest.mark.parametrize("word", ["+foo=1", "++foo=1", "+foo.bar=1", "+export.foo=1", "++export.foo=1"])
def test_an_option_that_plus_adds_is_unknown(word: str) -> None:
    assert error_of(word).startswith(f"unknown option '{'export.foo' if 'export' in word else 'foo'}'")


@pytest.mark.parametrize(
    "name", ["seed", "prior", "export", "export.faces", "guidance.scale", "prior=embedded"]
)
def test_an_option_is_not_deleted(name: str) -> None:
    assert error_of(f"~{name}") == f"an option cannot be deleted, got ~{name}; leave it out for its default"


def test_what_is_deleted_instead_is_said() -> None:
    assert error_of("~seeed").startswith("unknown option 'seeed'; did you mean 'seed'?")
    for group in ("preset", "experiment", "scene"):
        assert error_of(f"~{group}") == f"{group} names no part; choose one with {group}=NAME"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("+seed=3", "seed is there already, and + adds what is not; write seed=3"),
        ("+guidance.scale=3", "guidance.scale is there already, and + adds what is not; write guidance.scale=3"),
        ("+guidance=vsd", "guidance is there already, and + adds what is not; write guidance=vsd"),
        ("render=null", "render is a group of options, got null; set one of them, such as render.batch="),
        ("export=[glb]", "export is a group of options, got [glb]; set one of them"),
        ("scene=5", "scene takes a name, got 5; write for example scene=hash_grid"),
        ("guidance=false", "guidance takes a name, got false; write for example guidance=sds"),
        ("experiment=null", "experiment takes a name, got null"),
        ("keep=[best]", "keep takes one value, got ['best']; leave it out for the default"),
        ("++export.formats=1", "export.formats is a list, got 1; write export.formats=[1]"),
        ("export.faces==5", "could not read export.faces==5 as an option; write name=value"),
    ],
)  # fmt: skip
def test_the_option_is_named_whose_value_is_of_another_kind(word: str, said: str) -> None:
    assert said in error_of(word)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prior:\n  dtype: float32", "prior takes one value, got {'dtype': 'float32'}; what belongs to it are the options of prior_options"),
        ("keep: [best]", "keep takes one value, got ['best']"),
        ("export: glb", "export is a group of options, got glb; set one of them, such as export.enabled="),
    ],
)  # fmt: skip
def test_so_it_is_in_a_configuration_file(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\n{text}\n")
    assert said in error_of("experiment=mine", folders=(str(tmp_path),))


def test_a_word_for_one_stage_and_one_of_a_sweep_are_looked_at_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "did you mean prior_options.dtype=1?" in error_of(
        "stages=[field,surface]", "stage.surface.prior.dtype=1"
    )
    assert line_of(["a red mug", "-m", "seed.x=1,2"], capsys).startswith("seed takes one value")


def slips() -> Iterator[tuple[list[str], str]]:
    spaces = "an option is written name=value, without spaces around ="
    yield from ((words, spaces) for words in (["seed", "=1"], ["seed=", "1"], ["seed", "=", "1"], ["seed:", "1"],
                                              ["export-faces=5"], ["export:faces=5"]))  # fmt: skip
    yield from ((words, "put the prompt in quotes") for words in (["red", "mug"], ["a red mug"]))
    yield ["of", "a", "scene"], f"put the prompt in quotes; {spaces}"
    yield ["--seed", "1"], "unknown flag --seed; options have no dashes, write seed=VALUE;"
    yield ["--output-dir=x"], "unknown flag --output-dir; options have no dashes, write output_dir=x;"
    yield ["--wy", "seed"], "unknown flag --wy; did you mean --why?"


@pytest.mark.parametrize(("words", "said"), slips())
def test_an_option_that_is_written_otherwise_is_told_how(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in line_of(["a mug", *words], capsys)


@pytest.mark.parametrize("resolution", [1025, 3000, 10**9])
def test_a_grid_finer_than_the_limit_is_refused_before_a_run(resolution: int) -> None:
    said = error_of(f"export.resolution={resolution}")
    assert "export.resolution must be an integer in [8, 1024]" in said
    assert compose_config(["prompt=x", "export.resolution=1024"]).export.resolution == 1024


@pytest.mark.parametrize("size", [16385, 60000, 1000000])
def test_a_texture_that_no_viewer_takes_is_refused_before_a_run(size: int) -> None:
    assert "export.texture_size must be an integer in [64, 16384]" in error_of(f"export.texture_size={size}")
    assert compose_config(["prompt=x", "export.texture_size=16384"]).export.texture_size == 16384
