"""Configurations of threestudio as commands: every value against the rules of the page, and what is left out is named."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from distill.arguments import split_prompt
from distill.from_threestudio.__main__ import main
from distill.from_threestudio.convert import convert, written
from distill.from_threestudio.read import RESOLVERS, largest
from distill.from_threestudio.scene import rates
from distill.from_threestudio.table import CONVERTED, QUIET, SAME, WITHOUT
from distill.from_threestudio.values import GUIDANCE, Conversion
from distill.options import schedule
from distill.run.config.compose import compose_config
from distill.run.config.overrides import quote, quote_text

PAGE = Path(__file__).parents[1] / "docs" / "coming-from-threestudio.md"

TEXT = """\
name: mine
tag: "${rmspace:${system.prompt_processor.prompt},_}"
seed: 3
data_type: random-camera-datamodule
data:
  batch_size: 2
  height: 64
  width: 64
  camera_distance_range: [2.0, 3.0]
  fovy_range: [40, 70]
  elevation_range: [-10, 45]
  eval_fovy_deg: 70.0
system_type: dreamfusion-system
system:
  geometry_type: implicit-volume
  geometry:
    radius: 2.0
    density_blob_std: 0.5
    pos_encoding_config:
      otype: ProgressiveBandHashGrid
      n_levels: 4
      base_resolution: 8
      per_level_scale: 2.0
      start_level: 2
      start_step: 100
      update_steps: 50
  material_type: diffuse-with-point-light-material
  material:
    ambient_only_steps: ${add:${trainer.max_steps},1}
  background_type: neural-environment-map-background
  renderer_type: nerf-volume-renderer
  renderer:
    radius: ${system.geometry.radius}
    num_samples_per_ray: ${mul:${data.batch_size},64}
  prompt_processor:
    prompt: a small "red" boat, isn't it
  guidance_type: stable-diffusion-guidance
  guidance:
    pretrained_model_name_or_path: stabilityai/stable-diffusion-2-1-base
    guidance_scale: 50.0
    weighting_strategy: uniform
    min_step_percent: 0.02
    max_step_percent: [100, 0.98, 0.5, 300]
  loss:
    lambda_sds: 2.0
    lambda_orient: [10.0, 20.0, 200]
    lambda_sparsity: 1.0
    lambda_z_variance: 0.5
    lambda_convex: 0.0
  optimizer:
    name: AdamW
    args: {betas: [0.9, 0.99], eps: 1.e-15}
    params:
      geometry.encoding: {lr: 0.02}
      geometry.density_network: {lr: 0.002}
      background: {lr: 0.003}
trainer:
  max_steps: 400
"""

PICTURE = """\
data_type: single-image-datamodule
data:
  image_path: boat.png
  height: 256
  default_elevation_deg: 5.0
  default_camera_distance: 3.8
  default_fovy_deg: 20.0
  random_camera:
    height: [64, 128]
    width: [64, 128]
    batch_size: [8, 4]
    resolution_milestones: [200]
    camera_distance_range: [3.8, 3.8]
system_type: zero123-system
system:
  geometry_type: implicit-volume
  geometry: {radius: 2.0}
  background_type: solid-color-background
  prompt_processor: {prompt: ""}
  guidance_type: zero123-guidance
  guidance:
    guidance_scale: 3.0
    cond_image_path: ${data.image_path}
  loss: {lambda_sds: 0.1, lambda_rgb: 500.0, lambda_mask: [0, 1.0, 2.0, 100]}
trainer: {max_steps: 600}
"""


def changed(text: str, **values: Any) -> str:
    """A configuration with other values, by dotted key with ``__`` for each dot."""
    config = OmegaConf.create(text)
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    return OmegaConf.to_yaml(config)


@pytest.fixture
def converted(tmp_path: Path) -> Any:
    """Convert a text; gives the composed configuration of the printed command, and the notes as one text."""

    def run(text: str) -> tuple[DictConfig, str]:
        (tmp_path / "mine.yaml").write_text(text)
        command, notes = convert(tmp_path / "mine.yaml")
        assert "\n" not in command and command.startswith("distill ")
        prompt, options = split_prompt(shlex.split(command)[1:])
        words = [*map(quote_text, options), *([f"prompt={quote(prompt)}"] if prompt else [])]
        return compose_config(words), "\n".join(notes)

    return run


def test_every_value_arrives_as_the_page_says(converted: Any) -> None:
    config, notes = converted(TEXT)
    assert config.prompt == 'a small "red" boat, isn\'t it'
    assert (config.seed, config.iterations, config.prior) == (3, 400, "sd-2.1-base")
    assert (config.guidance.scale, config.guidance.weighting) == (51, "uniform")
    assert config.timesteps._target_.endswith(".uniform") and config.timesteps.t_min == 0.02
    assert dict(config.timesteps.t_max) == {"start": 0.98, "end": 0.5, "from_step": 100, "to_step": 300}
    assert (config.guidance_weight, config.penalties.sparsity, config.penalties.z_variance) == (2, 1, 0.5)
    assert dict(config.penalties.orientation) == {"start": 10, "end": 20, "from_step": 0, "to_step": 200}
    cameras = config.cameras
    assert list(cameras.distance) == [2.0, 3.0] and list(cameras.fov_y_deg) == [40, 70]
    # threestudio's own, which the file leaves out, as is the weight decay of AdamW.
    assert (cameras.by_area, cameras.position_jitter, cameras.look_at_std, cameras.up_std) == (
        0.5,
        0.1,
        0.2,
        0.02,
    )
    assert (list(config.optimiser.betas), config.optimiser.eps, config.optimiser.weight_decay) == (
        [0.9, 0.99],
        1e-15,
        0.01,
    )
    assert (config.render.batch, config.render.size) == (2, 64)
    scene = config.scene
    assert (scene.levels, scene.base_resolution, scene.finest_resolution) == (4, 8, 8 * 2**3)
    assert list(scene.progressive_levels) == [2, (100 + 2 * 50) / 400, 100 / 400]
    assert (scene.radius, scene.blob_radius) == (2, 0.5)
    assert (scene.march_steps, scene.background, scene.random_background) == (128, "learned", 0)
    assert (scene.encoding_lr, scene.mlp_lr, scene.background_lr) == (0.02, 0.002, 0.003)
    assert scene.hidden_width == 64 and scene.features == 2  # threestudio's own, which the file leaves out
    said = dict(line.split(": ", 1) for line in notes.splitlines())
    assert said["system.guidance.guidance_scale"].startswith("s + 1")
    assert dict(config.render.turns) == {
        "lambertian": 0,
        "textureless": 0,
        "normals": 0,
    }  # ambient throughout
    assert "data.camera_perturb" in said["not in the file, as threestudio has them"]
    assert "step" in said["system.guidance.max_step_percent"] and "no counterpart" not in said
    assert "eval_fovy" not in notes and "tag" not in said


def test_a_picture_and_its_camera_arrive(converted: Any) -> None:
    config, notes = converted(PICTURE)
    assert (config.image, config.prompt, config.guidance.scale) == ("boat.png", "", 3)
    reference = config.reference
    assert (reference.elevation_deg, reference.distance, reference.fov_y_deg) == (5, 3.8, 20)
    assert config.guidance_weight == 0.1
    assert config.penalties.reference_rgb == 500 and config.penalties.start_rgb == 0
    assert dict(config.penalties.reference_mask) == {"start": 1, "end": 2, "from_step": 0, "to_step": 100}
    assert dict(config.render.size) == {"start": 64, "end": 128, "from_step": 200, "to_step": 200}
    assert config.render.batch == 8 and "data.batch_size: [8, 4]" in notes
    assert config.optimiser.final_lr == 1


def test_a_text_prior_beside_a_picture_s_model_is_a_mix(converted: Any) -> None:
    text = changed(
        PICTURE,
        system_type="magic123-system",
        system__prompt_processor__prompt="a boat",
        system__guidance_type="stable-diffusion-unified-guidance",
        system__guidance__guidance_type="sds",
        system__guidance__guidance_scale=100.0,
        system__guidance_3d_type="zero123-unified-guidance",
        system__guidance_3d={"guidance_scale": 5.0, "min_step_percent": 0.2},
        system__loss={"lambda_sds": 0.0, "lambda_sd": 0.025, "lambda_3d_sd": 1.0, "lambda_rgb": 1000.0},
    )
    config, notes = converted(text)
    assert [dict(term) for term in config.guidance.terms] == [
        {"loss": "sds", "weight": 0.025, "scale": 100},
        {"loss": "sds", "prior": "novel_view", "weight": 1, "scale": 5},
    ]
    assert (
        config.penalties.reference_rgb == 1000 and config.guidance_weight == 1 and config.prompt == "a boat"
    )
    assert "system.guidance_3d.min_step_percent: 0.2: no counterpart" in notes


#: Kind, Perp-Neg, and what is added to a scale of 50; the page's first table.
SCALES = [
    ("stable-diffusion-guidance", False, 1),
    ("stable-diffusion-guidance", True, 0),
    ("deep-floyd-guidance", False, 1),
    ("stable-diffusion-sdi-guidance", False, 1),
    ("stable-diffusion-sdi-guidance", True, 0),
    ("stable-diffusion-vsd-guidance", False, 0),
    ("stable-diffusion-unified-guidance", False, 0),
]


@pytest.mark.parametrize(("kind", "perp", "more"), SCALES)
def test_scales_follow_each_loss_s_convention(converted: Any, kind: str, perp: bool, more: int) -> None:
    text = changed(TEXT, system__guidance_type=kind, system__prompt_processor__use_perp_neg=perp)
    config, notes = converted(text)
    assert config.guidance.scale == 50 + more and config.perp_neg.enabled == perp
    assert ("s + 1" in notes) == bool(more)
    if "sdi" in kind:
        assert config.guidance.inversion_scale == -7.5 + more and config.guidance.average
    assert kind in GUIDANCE


def test_a_lora_has_its_rate_from_the_first_step_on(converted: Any) -> None:
    text = changed(TEXT, system__guidance_type="stable-diffusion-vsd-guidance")
    config, notes = converted(text)
    assert (config.guidance.warmup, config.guidance.learning_rate) == (0, 1e-4)
    assert "guidance.lr" not in notes
    params = {"geometry": {"lr": 0.01}, "guidance": {"lr": 0.0002}}
    text = changed(text, system__optimizer__params=params)
    config, notes = converted(text)
    assert (config.guidance.warmup, config.guidance.learning_rate) == (0, 2e-4)
    assert "system.optimizer.params.guidance.lr: the LoRA's AdamW has torch's betas and eps" in notes


def threestudio_value(value: list[float], step: int) -> float:
    """A four-number list at a step, by its definition."""
    begin, start, end, until = value
    return start + (end - start) * min(max((step - begin) / (until - begin), 0), 1)


@pytest.mark.parametrize(
    "value", [[0, 1.0, 3.0, 100], [50, 3.0, 0.5, 51], [20, 0.0, 10.0, 300], [100, 1.0, 2.0, 200]]
)
def test_a_schedule_has_the_values_of_the_list_at_every_step(value: list[float]) -> None:
    """A schedule that continues after the run's end, 100 steps, among them."""
    ramp = schedule("it", Conversion({"it": value}, iterations=100).schedule("it"), 100)
    for step in range(100):
        found = ramp if isinstance(ramp, (int, float)) else ramp(step / 100)
        assert found == pytest.approx(threestudio_value(value, step))


def test_schedules_with_more_points_or_in_epochs_are_named() -> None:
    c = Conversion({"long": [100, 7.0, 5.0, 150, 10.0, 200], "epochs": [0, 1.0, 2.0, 50.0]}, iterations=400)
    assert c.schedule("long") == {"start": 7, "end": 10, "from_step": 100, "to_step": 200}
    assert c.schedule("epochs") == {"start": 1, "end": 2, "from_step": 0, "to_step": 50}
    said = [key for key, text in c.notes if "in between" in text or "epochs" in text]
    assert said == ["long", "epochs"]


def test_light_stages_and_ranges_that_widen(converted: Any) -> None:
    text = changed(
        TEXT,
        data__progressive_until=799,
        data__front_back_only_iters=40,
        system__material={
            "ambient_only_steps": 100,
            "diffuse_prob": 0.6,
            "textureless_prob": 0.25,
            "soft_shading": True,
        },
        system__background={"random_aug": True},
        system__optimizer={"name": "Adan", "args": {"lr": 0.02, "betas": [0.98, 0.92, 0.99]}},
    )
    config, notes = converted(text)
    since = {"start": 0, "from_step": 100, "to_step": 100}
    assert dict(config.render.turns.lambertian) == {**since, "end": 0.45} and config.render.soft_light
    assert (
        dict(config.render.turns.textureless) == {**since, "end": 0.15} and config.render.turns.normals == 0
    )
    # At the run's last step, 400 of 800, half of the way from 15 degrees and from 0.
    low, high = config.cameras.elevation_deg
    assert dict(low) == {"start": 15, "end": 2.5, "to_step": 400} and high["end"] == 30
    assert [end["end"] for end in config.cameras.azimuth_deg] == [-90, 90]
    assert dict(config.cameras.front_back) == {"start": 1, "end": 0, "from_step": 40, "to_step": 40}
    assert config.scene.random_background == 0.5
    assert "system.optimizer.name: Adan: no counterpart" in notes


def test_a_stage_of_normals_and_its_latents(converted: Any) -> None:
    text = changed(
        TEXT, system_type="fantasia3d-system", system__latent_steps=100, system__geometry_type="implicit-sdf"
    )
    config, _ = converted(text)
    assert (config.render.shading, config.render.latent_until) == ("normals", 0.25)
    assert list(config.scene.background) == [0, 0, 0]
    coloured, _ = converted(
        OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.create(text), {"system": {"texture": True}}))
    )
    assert (coloured.render.shading, coloured.render.latent_until) == ("albedo", 0)


@pytest.mark.parametrize(
    ("kind", "normalised"), [("deep-floyd-simple", True), ("stable-diffusion-triple", False)]
)
def test_classifier_score_distillation(converted: Any, kind: str, normalised: bool) -> None:
    text = changed(
        TEXT,
        system__guidance_type=f"{kind}-guidance",
        system__guidance__uncond_scale=[0, 0.0, -1.0, 200],
        system__guidance__null_scale=[0, -1.0, 0.0, 200],
        system__guidance__perpneg_scale=3.0,
        system__prompt_processor__use_perp_neg=True,
        system__prompt_processor__negative_prompt="blurry",
        system__material={"ambient_only_steps": 0, "textureless_prob": 1.0, "textureless_normal": True},
    )
    config, _ = converted(text)
    guidance, over = config.guidance, {"from_step": 0, "to_step": 200}
    assert (guidance.positive, guidance.random, guidance.normalise) == (1, 0, normalised)
    assert dict(guidance.negative) == {"start": 0, "end": -1, **over}
    assert dict(guidance.empty) == {"start": -1, "end": 0, **over}
    assert (config.perp_neg.strength, config.negative_prompt) == (3, "blurry")
    assert dict(config.render.turns) == {"lambertian": 0, "textureless": 0, "normals": 0.75}


def test_silent_files_have_each_kind_s_defaults(tmp_path: Path) -> None:
    found = {}
    for kind in ("stable-diffusion-guidance", "deep-floyd-guidance", "stable-diffusion-sdi-guidance"):
        config = OmegaConf.create(changed(TEXT, system__guidance_type=kind))
        del config.system.guidance, config.system.optimizer
        (tmp_path / "mine.yaml").write_text(OmegaConf.to_yaml(config))
        _, words = split_prompt(shlex.split(convert(tmp_path / "mine.yaml")[0])[1:])
        made = dict(word.split("=", 1) for word in words)
        found[kind] = (made["prior"], made["guidance.scale"], made["timesteps"])
        # torch's own.
        assert (made["optimiser.betas"], made["optimiser.eps"]) == ("[0.9,0.999]", "1e-08")
        assert "optimiser.weight_decay" not in made
        assert {made[f"scene.{name}_lr"] for name in ("encoding", "mlp", "background")} == {"0.001"}
    assert found == {
        "stable-diffusion-guidance": ("sd-1.5", "101", "uniform"),
        "deep-floyd-guidance": ("if-xl", "21", "uniform"),
        "stable-diffusion-sdi-guidance": ("sd-2.1-base", "101", "annealed"),
    }


def test_a_background_that_is_not_among_the_parameters_is_not_trained() -> None:
    values = {"system.background_type": "neural-environment-map-background", "system.optimizer.args.lr": 0.02}
    c = Conversion({**values, "system.optimizer.params.geometry.lr": 0.03})
    rates(c)
    assert c.options == {"scene.encoding_lr": 0.03, "scene.mlp_lr": 0.03, "scene.background_lr": 0}
    c = Conversion(values)
    rates(c)
    assert c.options == {"scene.encoding_lr": 0.02, "scene.mlp_lr": 0.02, "scene.background_lr": 0.02}


def test_what_cannot_be_worked_out_is_named_and_the_rest_converted(converted: Any) -> None:
    text = changed(TEXT, system__loss__lambda_opaque="${nothing.there}", system__loss__lambda_new=3.0)
    text += "elsewhere: ${unheard_of:3}\n"
    config, notes = converted(text)
    assert config.iterations == 400 and config.penalties.opaqueness == 0
    assert "system.loss.lambda_opaque: cannot be worked out" in notes
    assert "elsewhere: cannot be worked out" in notes
    assert "system.loss.lambda_new: 3.0: no counterpart" in notes


def test_a_key_that_no_table_has_is_named(converted: Any) -> None:
    assert "novel.thing: 3: not known" in converted(TEXT + "novel: {thing: 3}\n")[1]


def test_a_missing_prompt_has_a_place(converted: Any) -> None:
    config, notes = converted(changed(TEXT, system__prompt_processor__prompt="???"))
    assert config.prompt == "YOUR PROMPT" and "system.prompt_processor.prompt: the file has none" in notes


@pytest.mark.parametrize("prompt", ["seed=1 is my prompt", "--help", "$HOME `x` ${y} \\", "it's 'quoted'!"])
def test_any_prompt_survives_the_shell(tmp_path: Path, prompt: str) -> None:
    text = changed(TEXT)
    config = OmegaConf.create(text)
    escaped = prompt.replace("\\", "\\\\").replace("${", r"\${")
    config.system.prompt_processor.prompt = escaped
    config.tag = ""
    (tmp_path / "mine.yaml").write_text(OmegaConf.to_yaml(config))
    command, _ = convert(tmp_path / "mine.yaml")
    typed = subprocess.run(["sh", "-c", command.replace("distill", "printf '%s\\0'", 1)], capture_output=True)
    words = typed.stdout.decode().split("\0")[:-1]
    found, options = split_prompt(words)
    assert found is not None
    wanted = OmegaConf.load(tmp_path / "mine.yaml").system.prompt_processor.prompt
    assert found == wanted
    assert compose_config([*map(quote_text, options), f"prompt={quote(found)}"]).prompt == wanted


WRONG = [
    ("[1, 2", "cannot be read"),
    ("- a\n- b\n", "has not both of them"),
    ("lr: 3\n", "has not both of them"),
    (changed(TEXT, system_type="my-system"), "has system_type 'my-system', which has no counterpart here"),
    (changed(TEXT, system__guidance_type="clip-guidance"), "has system.guidance_type 'clip-guidance'"),
    (changed(TEXT, trainer__max_steps="many"), "trainer.max_steps must be a number, got 'many'"),
    (changed(TEXT, system__loss__lambda_sparsity=[1, 2]), "lambda_sparsity must be a number or a list"),
    (changed(TEXT, data__camera_distance_range=3), "cameras.distance must be a list of 2"),
    (changed(TEXT, data__elevation_range=3, data__progressive_until=9), "data.elevation_range: 3"),
    (changed(TEXT, data__batch_size=0), "render.batch must be an integer of at least 1, got 0"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[said for _, said in WRONG])
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["from_threestudio", str(tmp_path / "wrong.yaml")])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert err.startswith("distill: error: ") and err.count("\n") == 1 and said in err


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read") as caught:
        convert(tmp_path / "none.yaml")
    assert "\n" not in str(caught.value)


def test_command_is_on_stdout_and_comments_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(TEXT)
    monkeypatch.setattr(sys, "argv", ["from_threestudio", str(tmp_path / "mine.yaml")])
    main()
    out, err = capsys.readouterr()
    assert out.startswith("distill ") and out.count("\n") == 1
    assert all(line.startswith("# ") for line in err.splitlines()) and len(err.splitlines()) > 5


def test_resolvers_do_what_their_names_say_and_leave_nothing_behind(converted: Any) -> None:
    converted(TEXT)
    assert not any(OmegaConf.has_resolver(name) for name in RESOLVERS)
    assert [largest(value) for value in (3, [1.0, 4.0, 9], [5, 1.0, 2.0, 9], [5, 1.0, 2.0, 9, 7.0, 20])] == [
        3,
        4,
        2,
        7,
    ]
    assert RESOLVERS["rmspace"]("a b", "_") == "a_b" and RESOLVERS["cmaxgt0orcmaxgt0"](0, [0, 0.0, 1.0, 9])
    assert RESOLVERS["calc_exp_lr_decay_rate"](0.1, 2) == pytest.approx(0.1**0.5)


def keys_of_page() -> list[str]:
    """Every key in a first column: whole, or after the start that the table's head gives."""
    found, start = [], None
    for line in PAGE.read_text().splitlines():
        if not line.startswith("|"):
            start = None
            continue
        cell = line.split("|")[1]
        if start is None:
            codes = re.findall(r"`([^`]+)`", cell)
            start = (
                codes[0]
                if len(codes) == 1 and codes[0].endswith(".")
                else ""
                if cell.strip() == "key"
                else "-"
            )
        elif start != "-":
            found += [start + code for code in re.findall(r"`([^`]+)`", cell)]
    return found


def test_the_page_and_the_tables_have_the_same_keys() -> None:
    tables = [set(SAME), set(CONVERTED), set(WITHOUT), set(QUIET)]
    known = set().union(*tables)
    assert sum(map(len, tables)) == len(known)  # each key in one table
    page = keys_of_page()
    assert len(page) == len(set(page))
    assert set(page) == known


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (12345678901, "12345678901"),
        (2**64 - 1, "18446744073709551615"),
        (-0.0, "0"),
        (0.1, "0.1"),
        ("null", "'null'"),
        ("True", "'True'"),
        ("NaN", "'NaN'"),
        ("nothing", "nothing"),
    ],
)
def test_a_value_is_written_as_hydra_reads_it_back(value: object, word: str) -> None:
    assert written({"option": value}) == [f"option={word}"]
