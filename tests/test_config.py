"""The configuration: any prompt survives, and every slip is one line with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

import distill
from distill.arguments import split_prompt
from distill.contracts import Condition, Step
from distill.guidance.asd import asd
from distill.options import followed, options_of, schedule, schedules_in, value_over_run
from distill.priors.exact import gaussian
from distill.priors.families import FAMILIES
from distill.priors.preset import preset_of
from distill.priors.table import MODELS
from distill.run.assembly.assemble import make_guidance
from distill.run.config.compose import compose_config, compose_words, composing
from distill.run.config.implied import with_implied
from distill.run.config.overrides import as_overrides, quote
from distill.run.folder import folders
from distill.samplers.schedules import Ramp, at

PROMPTS = [
    "a red mug",
    "a mug, red, with a 'handle' and \"steam\"",
    "f(x) = [a, {b}] & c! 100%",
    "1984",
    "null",
    "${oc.env:HOME} and \\${x} \\\\${y}",
    "back\\slash \\",
    "tasse à café — 赤いマグ 🫖",
    "x" * 500,
    "two\nlines",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_hard_prompts_arrive_unchanged(prompt: str) -> None:
    assert compose_config([f"prompt={quote(prompt)}"]).prompt == prompt


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="ab ,'\"()[]{}=%!&$\\:~+-#é\t", min_size=1, max_size=12).filter(str.strip))
def test_any_prompt_arrives_unchanged(prompt: str) -> None:
    assert compose_config([f"prompt={quote(prompt)}"]).prompt == prompt


def error_of(*overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        compose_config(["prompt='a red mug'", *overrides])
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_unknown_option_suggests_the_nearest() -> None:
    assert "unknown option 'iteratons'; did you mean 'iterations'" in error_of("iteratons=5")


def test_unknown_option_of_a_loss_suggests_the_nearest() -> None:
    assert "did you mean 'guidance.scale'" in error_of("guidance.scael=5")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("iterations=many", "iterations must be an integer of at least 0, got 'many'; leave it out for the default"),
        ("export.enabled=maybe", "export.enabled must be true or false, got 'maybe'; leave it out for the default"),
        ("reference.azimuth_deg=front", "reference.azimuth_deg must be a finite number or null, got 'front'; leave it out for the default"),
        ("reference.fill=a", "reference.fill must be a number in [0.1, 1], got 'a'; leave it out for the default"),
        ("scene.encoding_lr=x", "scene.encoding_lr must be a finite number of at least 0, got 'x'; leave it out for the default"),
        ("seed=1.5", "seed must be an integer in [0, 18446744073709551615], got '1.5'; leave it out for the default"),
    ],
)  # fmt: skip
def test_wrong_type_names_the_option_and_what_it_takes(word: str, said: str) -> None:
    assert error_of(word) == said


def test_wrong_type_inside_a_group_names_the_option() -> None:
    assert error_of("guidance.scale=big").startswith(
        "guidance.scale must be a finite number or a schedule such as {"
    )
    assert error_of("guidance.scale=big").endswith("got 'big'")
    assert "scene.levels must be an integer" in error_of("scene.levels=many")


def test_unknown_guidance_lists_the_known_ones() -> None:
    names = "asd, bridge, csd, dds, hifa, ism, mix, nfsd, sdi, sds, tp_sds, vsd"
    own = "one of your own is known only in the script that registers it: run that script instead of distill"
    assert error_of("guidance=dsd") == f"unknown guidance 'dsd'; did you mean 'vsd'? there are {names}; {own}"


@pytest.mark.parametrize("name", ["iterations", "particles", "render.batch"])
def test_zero_where_there_must_be_some_is_refused(name: str) -> None:
    assert f"{name} must be an integer of at least 1, got 0" in error_of(f"{name}=0")


def test_unknown_device_is_refused() -> None:
    assert "device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'" in error_of("device=gpu")


@pytest.mark.parametrize("prompt", ["", "   "])
def test_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        compose_config([f"prompt={quote(prompt)}"])


def test_a_loss_s_signature_is_its_configuration() -> None:
    def loss(
        prior: Any,
        x: Any,
        cond: Any,
        t: Any,
        noise: Any,
        *,
        scale: float = 2.0,
        mode: str = "a",
        window: tuple[float, float] = (0.0, 1.0),
    ) -> Any:
        return None

    config = OmegaConf.structured(options_of(loss))
    assert {key: config[key] for key in ("scale", "mode", "window")} == {
        "scale": 2.0,
        "mode": "a",
        "window": [0.0, 1.0],
    }
    with pytest.raises(Exception, match="scale"):
        config.scale = "not a number"


def test_each_family_has_its_settings(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "IFPipeline"}')
    for prior, scale in (
        ("if-xl", 20.0),
        (str(tmp_path), 20.0),
        ("sd-2.1-base", 100.0),
        ("owner/other", 100.0),
    ):
        config = compose_config(["prompt=x", f"prior={prior}"])
        assert config.guidance.scale == scale
        assert config.iterations == 10_000
    assert compose_config(["prompt=x", "prior=if-xl", "guidance.scale=7"]).guidance.scale == 7
    with pytest.raises(ValueError, match=r"prior_options.dtype must be auto, float32, .* got 'int8'"):
        compose_config(["prompt=x", "prior_options.dtype=int8"])


def test_the_preset_follows_the_prior() -> None:
    assert compose_config(["prompt=x", "prior=somewhere"]).iterations == 10_000
    assert (
        compose_config(["prompt=x"]).iterations == compose_config(["prompt=x", "preset=embedded"]).iterations
    )
    assert compose_config(["prompt=x", "prior=somewhere"]).guidance.scale == 100.0


@pytest.mark.parametrize(
    ("prior", "scale", "vsd"),
    [("sd-2.1-base", 100.0, 7.5), ("sdxl", 100.0, 7.5), ("pixart-sigma-512", 100.0, 7.5), ("if-xl", 20.0, 7.5),
     ("sd-3-medium", 7.0, 7.5), ("flux.1-dev", 7.0, 7.5), ("sana-600m-512", 7.0, 7.5)],
)  # fmt: skip
def test_each_family_has_its_preset(prior: str, scale: float, vsd: float) -> None:
    config = compose_config(["prompt=x", f"prior={prior}"])
    assert (config.guidance.scale, config.iterations, config.render.batch) == (scale, 10_000, 1)
    assert (config.scene.levels, config.scene.finest_resolution, config.scene.mlp_lr) == (16, 1024, 0.001)
    assert compose_config(["prompt=x", f"prior={prior}", "guidance=vsd"]).guidance.scale == vsd
    assert compose_config(["prompt=x", f"prior={prior}", "scene=image"]).iterations == 10_000


def test_every_pipeline_in_the_table_has_a_preset() -> None:
    presets = {path.stem for path in (Path(distill.__file__).parent / "conf" / "preset").glob("*.yaml")}
    assert {family.preset for family in FAMILIES.values()} <= presets
    for name, model in MODELS.items():
        assert preset_of(name, single=True) == FAMILIES[model.pipeline].preset != "none"
        several = model.pipeline == "MVDreamPipeline"
        assert preset_of(name) == ("multi_view" if several else FAMILIES[model.pipeline].preset)


def test_python_keywords_become_the_same_configuration() -> None:
    options = {
        "prompt": "a, b",
        "iterations": 7,
        "guidance": "sds",
        "guidance.scale": 3.5,
        "output_dir": None,
        "resume": True,
    }
    config = compose_config(as_overrides(options))
    assert (config.prompt, config.iterations, config.guidance.scale, config.output_dir, config.resume) == (
        "a, b",
        7,
        3.5,
        None,
        True,
    )


@pytest.mark.parametrize(
    ("arguments", "prompt", "options"),
    [
        (["a red mug"], "a red mug", []),
        (["a red mug", "seed=1", "-m"], "a red mug", ["seed=1", "-m"]),
        (["seed=1", "x = y, (z)"], "x = y, (z)", ["seed=1"]),
        (["E=mc2"], "E=mc2", []),
        (["--", "seed=1"], "seed=1", []),
        (["iteratons=5", "a mug"], "a mug", ["iteratons=5"]),
        (
            ["--config-dir", "mine", "a mug", "+experiment=x"],
            "a mug",
            ["--config-dir", "mine", "+experiment=x"],
        ),
        (["prompts=list.txt"], None, ["prompts=list.txt"]),
    ],
)
def test_the_prompt_is_told_from_the_options(
    arguments: list[str], prompt: str | None, options: list[str]
) -> None:
    assert split_prompt(arguments) == (prompt, options)


def test_two_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="put the prompt in quotes"):
        split_prompt(["a", "red", "mug"])


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        ("A Red Mug!", "a-red-mug-"),
        ("tasse à café", "tasse-a-cafe-"),
        ("赤いマグ", "prompt-"),
        ("x" * 500, "x" * 60 + "-"),
        ("../../etc", "etc-"),
    ],
)
def test_folder_names_are_short_plain_and_unique(prompt: str, start: str) -> None:
    name = folders.folder_name(prompt)
    assert name.startswith(start)
    assert len(name) == len(start) + 8
    assert name.isascii() and "/" not in name
    assert folders.folder_name(prompt + " ") != name


def config(tmp_path: Path, *more: str) -> DictConfig:
    return compose_config(["prompt='a red mug'", *more])


def test_a_second_run_gets_a_folder_of_its_own_and_resume_finds_the_right_one(tmp_path: Path) -> None:
    first = folders.claim(config(tmp_path), tmp_path)
    second = folders.claim(config(tmp_path, "seed=1"), tmp_path)
    assert second.name == f"{first.name}-2"
    assert folders.claim(config(tmp_path, "seed=1", "resume=true"), tmp_path) == second
    assert folders.claim(config(tmp_path, "resume=true"), tmp_path) == first


def test_another_run_s_folder_is_left_alone(tmp_path: Path) -> None:
    where = f"output_dir={quote(str(tmp_path / 'mine'))}"
    folder = folders.claim(config(tmp_path, where))
    before = (folder / "config.yaml").read_text()
    with pytest.raises(ValueError, match="resume=true to continue"):
        folders.claim(config(tmp_path, where))
    for resume in ("true", "false"):
        with pytest.raises(
            ValueError,
            match=r"holds another run, with seed=0, not 5; give its own options .* or choose another output_dir=",
        ):
            folders.claim(config(tmp_path, where, "seed=5", f"resume={resume}"))
    assert (folder / "config.yaml").read_text() == before


@pytest.mark.parametrize("resume", ["true", "false"])
def test_a_run_keeps_its_length_and_the_way_to_train_on_is_told(resume: str, tmp_path: Path) -> None:
    where = f"output_dir={quote(str(tmp_path / 'mine'))}"
    folder = folders.claim(config(tmp_path, where))
    with pytest.raises(ValueError, match=r"iterations=400, not 500, and a run keeps its length") as caught:
        folders.claim(config(tmp_path, where, "iterations=500", f"resume={resume}"))
    assert f"add init={folder} and choose another output_dir=" in str(caught.value)
    with pytest.raises(ValueError, match=r"iterations=400, not 500; .*give its own options"):
        folders.claim(config(tmp_path, where, "iterations=500", "seed=5"))


@pytest.mark.parametrize("word", ["seeds=2", "retries=1", "particles=2", "scene=hyper_grid"])
def test_a_run_that_none_begins_with_is_not_told_to_be_trained_on(word: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a red mug\na blue mug\n")
    what = f"prompts={quote(str(tmp_path / 'list.txt'))}" if "hyper" in word else "prompt=a red mug"
    words = [what, word, f"output_dir={quote(str(tmp_path / 'mine'))}"]
    folders.claim(compose_config(words))
    with pytest.raises(ValueError, match=r"iterations=\d+, not 500; give its own options"):
        folders.claim(compose_config([*words, "iterations=500"]))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="choose a writable folder"):
        folders.claim(config(tmp_path, f"output_dir={quote(str(tmp_path / 'file' / 'x'))}"))


def test_any_number_of_a_loss_or_sampler_may_be_a_schedule_in_fractions_or_steps() -> None:
    chosen = [
        "prompt=x",
        "iterations=400",
        "guidance.scale={start:100,end:7.5,from_step:100,to_step:300}",
        "timesteps.t_max={start:0.98,end:0.5,to_fraction:0.5}",
        "guidance.weighting=uniform",
    ]
    config = compose_config(chosen)
    assert schedules_in(config, "guidance") == {"scale": Ramp(100, 7.5, 0.25, 0.75)}
    assert schedules_in(config, "timesteps") == {"t_max": Ramp(0.98, 0.5, 0.0, 0.5)}
    assert schedules_in(compose_config(["prompt=x", "guidance.scale=3"]), "guidance") == {}
    python = as_overrides({"guidance.scale": {"start": 1, "end": 2.5}})
    assert schedules_in(compose_config(["prompt=x", *python]), "guidance") == {"scale": Ramp(1, 2.5)}
    assert schedule("render.size", {"start": 32, "end": 64, "to_step": 10}, 20) == Ramp(32, 64, 0.0, 0.5)
    # Past the end of a shortened run, the schedule ends with it.
    assert schedule("scale", {"start": 1, "end": 0, "to_step": 500}, 100) == Ramp(1, 0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{start:1,stop:2}", "got the field 'stop'; the fields are start, end, from_fraction"),
        ("{end:2}", "got {'end': 2}"),
        ("{start:null,end:2}", "got no start"),
        ("{start:1,end:much}", "got 'much' in its end"),
        ("{start:1,to_step:3,to_fraction:0.5}", "has both to_fraction and to_step"),
        (
            "{start:1,from_fraction:0.8,to_fraction:0.2}",
            "guidance.scale: a schedule needs 0 <= from_fraction",
        ),
        ("[1,2]", "got [1, 2]"),
        ("true", "got True"),
    ],
)
def test_wrong_schedules_get_one_line(value: str, said: str) -> None:
    message = error_of(f"guidance.scale={value}")
    assert said in message
    assert "\n" not in message


def test_ranges_sizes_and_penalties_may_be_schedules_too() -> None:
    config = compose_config(
        [
            "prompt=x",
            "iterations=100",
            "cameras.elevation_deg=[{start:0,end:20,to_step:50},45]",
            "cameras.look_at_jitter={start:0.1,end:0}",
            "render.size={start:32,end:64}",
            "penalties.sparsity={start:1,end:0}",
        ]
    )
    moving = {"elevation_deg": (Ramp(0, 20, 0.0, 0.5), 45), "look_at_jitter": Ramp(0.1, 0)}
    assert schedules_in(config, "cameras") == moving
    python = as_overrides(
        {"cameras.elevation_deg": [{"start": 0, "end": 20, "to_step": 50}, 45], "iterations": 100}
    )
    again = schedules_in(compose_config(["prompt=x", *python]), "cameras")
    assert again == {"elevation_deg": moving["elevation_deg"]}
    plain = compose_config(["prompt=x", "render.size=48", "penalties.opaqueness=0.1"])
    assert (plain.render.size, plain.penalties.opaqueness) == (48, 0.1)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            "cameras.elevation_deg=[0]",
            "cameras.elevation_deg must be a list of 2, each",
        ),
        (
            "cameras.distance=[{start:3,stop:4},4]",
            "cameras.distance[0] must be a finite number or a schedule",
        ),
        ("render.size=4", "render.size must be a finite number of at least 8 or a schedule of it, got 4"),
        (
            "render.size={start:64,end:0}",
            "render.size must be a finite number of at least 8 or a schedule of it, got {'start'",
        ),
        ("penalties.sparsity=much", "penalties.sparsity must be a finite number or a schedule"),
        ("particles=0", "particles must be an integer of at least 1, got 0"),
    ],
)
def test_wrong_ranges_sizes_and_penalties_get_one_line(option: str, said: str) -> None:
    message = error_of(option)
    assert said in message
    assert "\n" not in message


EXPERIMENTS = {
    "dreamfusion": ("sds", "uniform"),
    "dreamtime": ("sds", "dreamtime"),
    "tp_sds": ("sds", "dreamtime"),
    "hifa": ("hifa", "square_root"),
    "csd": ("csd", "annealed"),
    "csd_refine": ("csd", "uniform"),
    "prolificdreamer": ("vsd", "annealed"),
    "scaledreamer": ("asd", "annealed"),
    "scaledreamer_mg15": ("asd", "annealed"),
    "scaledreamer_df415": ("asd", "annealed"),
    "scaledreamer_dl17k": ("asd", "annealed"),
    "lucid": ("ism", "uniform"),
    "sdi": ("sdi", "annealed"),
    "nfsd": ("nfsd", "uniform"),
    "magic3d": ("sds", "uniform"),
    "fantasia3d": ("sds", "uniform"),
    "imagedream": ("sds", "annealed"),
}


def test_every_experiment_is_listed() -> None:
    folder = Path(distill.__file__).parent / "conf" / "experiment"
    assert {path.stem for path in folder.glob("*.yaml")} == set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("preset", ["embedded", "none"])
def test_an_experiment_chooses_its_loss_and_timesteps_and_leaves_the_budget(name: str, preset: str) -> None:
    # Those for a library have a scene that learns one.
    asked = "prompts=x" if name.startswith("scaledreamer_") else "prompt=x"
    alone = ["stages=[field]"] if asked == "prompt=x" else []
    config = compose_config([asked, f"experiment={name}", f"preset={preset}", *alone])
    chosen = tuple(config[part]._target_.rpartition(".")[2].lower() for part in ("guidance", "timesteps"))
    assert chosen == EXPERIMENTS[name]
    assert config.iterations == {"embedded": 400, "none": 10_000}[preset]
    if chosen[0] == "csd":
        for progress in (0.0, 0.2, 0.5, 0.8, 1.0):
            options = at({**config.guidance, **schedules_in(config, "guidance")}, progress)
            assert sum(options[c] for c in ("positive", "negative", "empty", "random")) == pytest.approx(0.0)


def test_asds_shift_follows_the_samplers_lowest_timestep() -> None:
    def lowest(*options: str) -> Any:
        config = compose_config(["prompt=x", "guidance=asd", "iterations=100", *options])
        assert followed(asd) == {"t_min": "timesteps"}
        return value_over_run(config, "timesteps", "t_min")

    assert lowest() == Ramp(0.96, 0.1, 0.0, 1.0)
    assert lowest("experiment=scaledreamer", "preset=none") == Ramp(0.5, 0.02, 0.0, 1.0)
    assert lowest("timesteps=uniform", "timesteps.t_min=0.3") == 0.3
    moving = "timesteps.t_min={start:0.5,end:0.1,to_step:50}"
    assert lowest("timesteps=uniform", moving) == Ramp(0.5, 0.1, 0.0, 0.5)
    # A loss made from a configuration shifts as one that is given the same.
    prior = gaussian({"mug": torch.zeros(1, 4, 4), "": torch.ones(1, 4, 4)}, 0.5)
    config = compose_config(
        ["prompt=x", "guidance=asd", "timesteps=uniform", "timesteps.t_min=0.3", "guidance.eta=0.5"]
    )
    cond = Condition(
        {"text": prior.embed(["mug"]), "uncond": prior.embed([""])}, step=Step(uniform=torch.tensor([0.9]))
    )
    x, t, noise = torch.full((1, 1, 4, 4), 0.2), torch.tensor([700]), torch.full((1, 1, 4, 4), 0.7)
    found = make_guidance(config, prior, torch.Generator(), {})(prior, x, cond, t, noise)
    scale = config.guidance.scale
    torch.testing.assert_close(found, asd(prior, x, cond, t, noise, scale=scale, eta=0.5, t_min=0.3))
    assert not torch.allclose(found, asd(prior, x, cond, t, noise, scale=scale, eta=0.5))


@pytest.mark.parametrize("preset", ["none", "embedded"])
def test_the_csd_experiment_is_the_published_first_stage(preset: str) -> None:
    config = compose_config(["prompt=x", "experiment=csd", f"preset={preset}"])
    moving = schedules_in(config, "guidance")
    negative = [moving["negative"](p) for p in (0.0, 0.25, 0.5, 1.0)]
    assert negative == [0.0, -0.5, -1.0, -1.0]
    assert config.guidance.weighting == "uniform"


TP_SDS = [
    ([], 2.0),
    (["prior=sdxl", "scene=image"], 100.0),
    (["prior=sd-3-medium"], 7.0),
    (["iterations=7"], 2.0),
]


@pytest.mark.parametrize(("words", "scale"), TP_SDS)
def test_tp_sds_is_sds_with_dreamtimes_timesteps(words: list[str], scale: float) -> None:
    config = compose_config(["prompt=x", "guidance=tp_sds", *words])
    assert config == compose_config(["prompt=x", "experiment=tp_sds", *words])
    assert config.guidance.scale == scale
    assert config.timesteps._target_.endswith("dreamtime")
    assert (
        compose_config(
            as_overrides({"prompt": "x", "guidance": "tp_sds", "timesteps.centre": 0.4})
        ).timesteps.centre
        == 0.4
    )


def test_a_schedule_replaces_a_recipe_s_own() -> None:
    words = ["prompt=x", "prior=sd-2.1-base", "experiment=dreamfusion"]
    config = compose_config([*words, "penalties.orientation={start:1,end:20,to_step:500}"])
    assert config.penalties.orientation == {"start": 1, "end": 20, "to_step": 500}
    config = compose_config([*words, *as_overrides({"penalties.orientation": {"end": 20, "start": 1}})])
    assert config.penalties.orientation == {"start": 1, "end": 20}
    config = compose_config([*words, "penalties.orientation.end=500"])
    assert config.penalties.orientation == {"start": 10, "end": 500, "to_fraction": 0.5}
    for words in (["guidance.interval={end:0.3,start:0.2}"], ["cameras.distance=[{start:3,end:4},5]"]):
        compose_config(["prompt=x", "prior=sd-2.1-base", "experiment=lucid", *words])


def test_tp_sds_may_be_compared_with_others() -> None:
    from distill.lab.comparison.cost import compose

    assert compose({"guidance": "tp_sds"}, "a red mug", 1).timesteps._target_.endswith("dreamtime")


def test_other_timesteps_beside_tp_sds_are_refused() -> None:
    assert "write guidance=sds timesteps=uniform" in error_of("guidance=tp_sds", "timesteps=uniform")
    assert compose_config(["prompt=x", "guidance=tp_sds", "timesteps=dreamtime"]).guidance.scale == 2.0
    assert compose_config(["prompt=x", "guidance=tp_sds", "timesteps=dreamtime_v1"]).timesteps.upper == 0.8


OTHERS = [
    ("optimiser.mlp", 0.01, "optimiser.mlp, which this version does not know"),
    (
        "scene._target_",
        "distill.renderers.Gone",
        "scene._target_=distill.renderers.Gone, which this version does not know",
    ),
    ("guidance.through", "sds", "guidance.through, which this version does not know"),
    ("gone", 3, "gone, which this version does not know"),
    ("scene.levels", None, "no scene.levels, which this version has"),
    ("render.batch", None, "no render.batch, which this version has"),
]


@pytest.mark.parametrize(("name", "value", "said"), OTHERS, ids=[said for _, _, said in OTHERS])
def test_a_run_of_another_version_is_refused_by_name(
    tmp_path: Path, name: str, value: object, said: str
) -> None:
    folder = folders.claim(config(tmp_path), tmp_path)
    stored: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    group, _, key = name.rpartition(".")
    (stored[group] if group else stored)[key] = value
    if value is None:
        del stored[group][key]
    OmegaConf.save(OmegaConf.create(stored), folder / "config.yaml")
    where = f"output_dir={quote(str(folder))}"
    for words, root in ((["resume=true"], tmp_path), (["resume=true", where], tmp_path), ([where], tmp_path)):
        with pytest.raises(ValueError, match="another version of distill") as caught:
            folders.claim(config(tmp_path, *words), root)
        assert said in str(caught.value) and "output_dir=" in str(caught.value)
    # Another run is in nobody's way.
    assert folders.claim(config(tmp_path, "seed=1", "resume=true"), tmp_path).name.endswith("-2")
    with pytest.raises(ValueError, match="holds another run, with seed=0, not 2"):
        folders.claim(config(tmp_path, "seed=2", where), tmp_path)


@pytest.mark.parametrize("text", ["", "prompt: [", "[1, 2]"])
def test_settings_that_cannot_be_read_are_one_line(tmp_path: Path, text: str) -> None:
    folder = folders.claim(config(tmp_path), tmp_path)
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml") as caught:
        folders.claim(config(tmp_path, "resume=true"), tmp_path)
    assert "\n" not in str(caught.value)


def differing(one: Any, other: Any, prefix: str = "") -> set[str]:
    """Dotted names of what two configurations differ in."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return set() if one == other else {prefix.removesuffix(".")}
    names = {*one, *other}
    return {
        each
        for name in names
        for each in differing(one.get(name, ...), other.get(name, ...), f"{prefix}{name}.")
    }


#: What cameras have that are drawn alone, and what those have that are drawn in groups.
ALONE = {f"cameras.{name}" for name in
         ("azimuth_deg", "look_at_jitter", "by_area", "area_elevation_deg", "front_back", "front_back_deg", "position_jitter",
          "look_at_std", "up_std")}  # fmt: skip
GROUPED = {"cameras.views", "cameras.relative_distance", "cameras._target_"}


def unchecked(*words: str) -> Any:
    """A configuration that is composed alone, with no look at whether a run could be made of it."""
    with composing():
        return OmegaConf.to_container(compose_words(with_implied(words)).config)


WORDS = [
    ["prompt=x"],
    ["prompt=x", "iterations=7", "scene=surface", "guidance=asd", "guidance.scale=3", "render.turns={lambertian:0.5}"],
    ["guidance.scale=null", "guidance.scale={start:9,end:3}", "preset=latent", "prompt=x", "experiment=prolificdreamer"],
    ["guidance={scale:3}", "+experiment=dreamfusion", "prompt=x", "export.formats=[glb]"],
    ["prompt=x", "guidance=no_such"],
    ["prompt=x", "guidance.no_such=1", "scene=no_such"],
    ["prompt=x", "iterations=many"],
    ["prompt=x", "seed=1,2"],
    ["guidance=sds,csd", "prompt=x"],
    ["prompt=x", "~guidance"],
    ["prompt=x", "scene=3"],
    ["prompt=x", "seed=[1"],
]  # fmt: skip


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_parts_that_were_composed_before_are_what_hydra_composes(words: list[str]) -> None:
    """The same values, flags and errors as in Hydra's own composition, which reads every file again."""

    def made(compose: Callable[[], DictConfig]) -> tuple[object, ...]:
        try:
            found = compose()
        except Exception as error:
            return type(error), str(error), type(error.__cause__), str(error.__cause__)
        return OmegaConf.to_yaml(found), OmegaConf.is_struct(found), OmegaConf.is_struct(found.render)

    with composing():
        whole = made(lambda: hydra.compose("config", overrides=words))
        for _ in range(2):
            assert made(lambda: compose_words(words).config) == whole


def test_what_is_done_to_a_configuration_stays_with_it() -> None:
    words = ["prompt=x", "guidance.scale={start:9,end:3}"]
    first = compose_config(words)
    first.guidance.scale.start, first.penalties.sparsity, first.cameras.elevation_deg[0] = 1, 5, -7
    second = compose_config(words)
    assert second.guidance.scale.start == 9
    assert second.penalties.sparsity != 5
    assert second.cameras.elevation_deg[0] != -7


def test_files_of_the_users_own_are_read_each_time(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    for steps in (11, 12):
        (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\niterations: {steps}\n")
        assert compose_config(["prompt=x", "+experiment=mine"], [str(tmp_path)]).iterations == steps


def one(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, own: float = 1.0) -> Any: ...


def other(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, own: float = 2.0) -> Any: ...


def test_a_loss_that_is_registered_again_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill.guidance, "_registered", {})
    for number, loss in ((1.0, one), (2.0, other)):
        monkeypatch.setattr(loss, "__name__", "mine")
        distill.guidance.register(loss)
        with composing():
            assert compose_words(["guidance=mine"]).config.guidance.own == number


@pytest.mark.slow
def test_a_multi_view_prior_has_what_stable_diffusion_has() -> None:
    """Every scene that is tuned for latents and every experiment: by the same words, except for what is meant to differ."""
    folder = Path(distill.__file__).parent / "conf"
    scenes = [path.stem.removeprefix("latent_") for path in (folder / "tuned/scene").glob("latent_*.yaml")]
    assert len(scenes) == 5
    for part in ("guidance", "timesteps"):
        assert not list((folder / "tuned" / part).glob("latent_*.yaml"))
    meant = {"prior", "render.batch", *ALONE, *GROUPED}
    for scene in scenes:
        found = differing(
            *(unchecked(f"prior={prior}", f"scene={scene}") for prior in ("mvdream", "sd-2.1-base"))
        )
        assert found == meant, scene
    # A recipe is of single pictures, and not taken, except for the one whose own prior takes several; the loss and timesteps are.
    recipes = {path.stem for path in (folder / "recipe").glob("multi_view_*.yaml")}
    assert recipes == {
        "multi_view_hyper_conv_scaledreamer_dl17k",
        "multi_view_image_hash_grid_imagedream",
    }
    for experiment in sorted(path.stem for path in (folder / "experiment").glob("*.yaml")):
        one, other = (
            unchecked(f"prior={prior}", f"experiment={experiment}") for prior in ("mvdream", "sd-2.1-base")
        )
        if experiment == "scaledreamer_dl17k":
            # Its batch is four as it is.
            assert differing(one, other) == meant - {"render.batch"}
            continue
        assert (one["render"]["batch"], one["cameras"]["views"], one["perp_neg"]["enabled"]) == (4, 4, False)
        assert one["timesteps"] == other["timesteps"], experiment
        for part in ("guidance", "scene"):
            assert one[part]["_target_"] == other[part]["_target_"], experiment


def test_views_that_are_wanted_are_views_that_are_drawn() -> None:
    words = ["prompt=x", "prior=mvdream", "prior_options.views=6", "render.batch=12"]
    assert compose_config(words).cameras.views == 6
    assert compose_config([*words, "cameras.views=12"]).cameras.views == 12
    # As a prior of single pictures, MVDream is a Stable Diffusion.
    single = unchecked("prior=mvdream", "prior_options.views=1", "experiment=prolificdreamer")
    plain = unchecked("prior=sd-2.1-base", "experiment=prolificdreamer")
    assert differing(single, plain) == {"prior", "prior_options.views"}
