"""What a converted configuration runs is what the recipe of the same name runs, option by option and step by step."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from distill.arguments import split_prompt
from distill.from_threestudio.convert import convert
from distill.options import schedule
from distill.run.config.compose import compose_config
from distill.run.config.overrides import quote_text

#: Coarse stages in threestudio's layout, as short as its defaults allow; cameras of radius 2 and of radius 1.
LIT = """
system_type: {system}
data: {{height: {size}, width: {size}, camera_distance_range: [1.5, 2.0], elevation_range: {elevation}}}
system:
  geometry_type: implicit-volume
  geometry:
    radius: 2.0
    pos_encoding_config: {{start_level: 8, start_step: 2000, update_steps: 500}}
  material_type: diffuse-with-point-light-material
  material: {material}
  background_type: neural-environment-map-background
  prompt_processor: {{prompt: a pear, use_perp_neg: {perp}}}
  guidance_type: {kind}
  guidance: {guidance}
  loss: {loss}
  optimizer:
    name: Adam
    args: {{lr: 0.01, betas: [0.9, 0.99], eps: 1.0e-15}}
    params: {{geometry: {{lr: 0.01}}, background: {{lr: 0.001}}}}
trainer: {{max_steps: 10000}}
"""
DREAMFUSION = {
    "system": "dreamfusion-system", "size": 64, "material": "{ambient_only_steps: 2001}", "perp": False,
    "loss": "{lambda_sds: 1.0, lambda_sparsity: 1.0, lambda_orient: [0, 10.0, 1000.0, 5000]}",
}  # fmt: skip
STABLE = {
    "kind": "stable-diffusion-guidance",
    "elevation": "[-10, 45]",
    "guidance": "{pretrained_model_name_or_path: stabilityai/stable-diffusion-2-1-base}",
}
FLOYD = {"kind": "deep-floyd-guidance", "elevation": "[-10, 90]", "guidance": "{weighting_strategy: sds}"}
INVERSION = {
    "system": "sdi-system", "size": 512, "perp": True, "elevation": "[-10, 45]", "kind": "stable-diffusion-sdi-guidance",
    "material": "{diffuse_prob: 0.3, textureless_prob: 0.75}",
    "guidance": "{guidance_scale: 7.5, min_step_percent: 0.25}",
    "loss": "{lambda_sdi: 1.0, lambda_sparsity: [0, 0.15, 0.0, 3000], lambda_orient: 0.1, lambda_opaque: 0.1, "
            "lambda_convex: [0, 1.0, 0.1, 4000], lambda_z_variance: 1.0}",
}  # fmt: skip
PLAIN = """
system_type: {system}
data:
  height: {size}
  width: {size}
  resolution_milestones: {milestones}
  elevation_range: [-10, 45]
  camera_perturb: 0.0
  center_perturb: 0.0
  up_perturb: 0.0
system:
  geometry_type: implicit-volume
  material_type: no-material
  background_type: neural-environment-map-background
  background: {{random_aug: true}}
  prompt_processor: {{prompt: a pear, front_threshold: {front}, back_threshold: {front}, use_perp_neg: {perp}}}
  guidance_type: {kind}
  guidance: {guidance}
  loss: {loss}
  optimizer:
    name: {optimiser}
    args: {{betas: {betas}, eps: 1.0e-15}}
    params:
      geometry.encoding: {{lr: 0.01}}
      geometry.density_network: {{lr: 0.001}}
      geometry.feature_network: {{lr: 0.001}}
      background: {{lr: 0.001}}
trainer: {{max_steps: 25000}}
"""
VARIATIONAL = {
    "system": "prolificdreamer-system", "size": "[64, 512]", "milestones": "[5000]", "front": 30, "perp": False,
    "kind": "stable-diffusion-vsd-guidance", "guidance": "{max_step_percent: [5000, 0.98, 0.5, 5001]}",
    "loss": "{lambda_vsd: 1.0, lambda_sparsity: 10.0, lambda_opaque: [10000, 0.0, 1000.0, 10001]}",
    "optimiser": "AdamW", "betas": "[0.9, 0.99]",
}  # fmt: skip
PIXELS = {
    "system": "dreamfusion-system", "size": 512, "milestones": "[]", "front": 45, "perp": False,
    "kind": "stable-diffusion-guidance",
    "guidance": "{pretrained_model_name_or_path: stabilityai/stable-diffusion-2-1-base, use_img_loss: true, "
                "sqrt_anneal: true, min_step_percent: 0.3}",
    "loss": "{lambda_sds: 1.0, lambda_sds_img: 0.01, lambda_sparsity: 1.0, lambda_z_variance: 100}",
    "optimiser": "Adam", "betas": "[0.9, 0.99]",
}  # fmt: skip
ASYNCHRONOUS = {
    "system": "scaledreamer-system", "size": "[64, 256]", "milestones": "[10000]", "front": 30, "perp": True,
    "kind": "stable-diffusion-asynchronous-score-distillation-guidance",
    "guidance": "{plus_random: true, guidance_perp_neg: -0.5, min_step_percent: [0, 0.5, 0.02, 25000], "
                "max_step_percent: [0, 0.98, 0.5, 25000]}",
    "loss": "{lambda_asd: 1.0, lambda_sparsity: 30, lambda_opaque: [10000, 0.0, 100.0, 10001]}",
    "optimiser": "AdamW", "betas": "[0.0, 0.99]",
}  # fmt: skip
CASES = [
    ("dreamfusion", "sd-2.1-base", LIT.format(**DREAMFUSION, **STABLE)),
    ("dreamfusion", "if-xl", LIT.format(**DREAMFUSION, **FLOYD)),
    ("sdi", "sd-2.1-base", LIT.format(**INVERSION)),
    ("prolificdreamer", "sd-2.1-base", PLAIN.format(**VARIATIONAL)),
    ("hifa", "sd-2.1-base", PLAIN.format(**PIXELS)),
    ("scaledreamer", "sd-2.1-base", PLAIN.format(**ASYNCHRONOUS)),
]
#: What a recipe leaves as it is: renders are encoded to the VAE's mode. ``four`` is what ``auto`` means with these priors. VSD's LoRA
#: has the warm-up of its authors, and none in threestudio.
APART = {"prior_options.vae_sample", "view_words", "guidance.warmup"}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by dotted name, schedules whole."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inside = isinstance(value, dict) and "start" not in value
        found |= flat(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
    return found


def composed(words: list[str]) -> dict[str, Any]:
    """All options, the two ways to write timesteps that fall made one."""
    config = OmegaConf.to_container(compose_config(words))
    assert isinstance(config, dict)
    options = flat({str(name): value for name, value in config.items()})
    kind = options["timesteps._target_"].rsplit(".", 1)[1]
    if kind == "annealed":
        kind = "uniform"
        turn = {name: options.pop(f"timesteps.{name}") for name in ("from_fraction", "to_fraction")}
        for name in ("timesteps.t_min", "timesteps.t_max"):
            options[name] = {"start": options[name], "end": options.pop(f"{name}_end"), **turn}
    return options | {"timesteps._target_": kind}


def over_the_run(name: str, value: Any, iterations: int) -> Callable[[int], Any]:
    """The value of an option by step."""
    if isinstance(value, list):
        items = [over_the_run(name, item, iterations) for item in value]
        return lambda step: [item(step) for item in items]
    found = schedule(name, value, iterations) if isinstance(value, dict) else value
    return lambda step: found(step / iterations) if callable(found) else found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) if numbers else one == other


@pytest.mark.parametrize(
    ("name", "prior", "text"), CASES, ids=[f"{name}-{prior}" for name, prior, _ in CASES]
)
def test_a_configuration_and_the_recipe_are_the_same_run(
    name: str, prior: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    command, _ = convert(tmp_path / "mine.yaml")
    prompt, words = split_prompt(shlex.split(command)[1:])
    converted = composed([*map(quote_text, words), f"prompt={prompt}"])
    recipe = composed([f"prompt={prompt}", f"prior={prior}", f"experiment={name}", "stages=[field]"])
    converted["stages"] = recipe["stages"]
    assert converted.keys() == recipe.keys()
    steps = range(converted["iterations"])
    different = {}
    for option in converted.keys() - APART:
        one, other = converted[option], recipe[option]
        if same(one, other):
            continue
        mine, theirs = (over_the_run(option, value, len(steps)) for value in (one, other))
        # A change at a step is at a fraction in a recipe, up to a step earlier.
        if sum(not same(mine(step), theirs(step)) for step in steps) > 1:
            different[option] = (one, other)
    assert not different
