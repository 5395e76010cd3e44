"""Recipes: every option beside its published value, the page that shows them, and a short run of each on a tiny model."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tiny_pipelines import make

import distill
from distill.arguments import split_prompt
from distill.files.checkpoint import load_checkpoint
from distill.priors.diffusion import DiffusionPrior
from distill.run.config.compose import compose_config
from distill.run.several.amortise import amortise
from distill.samplers.schedules import Ramp
from distill.samplers.shading import by_turns

ROOT = Path(__file__).parents[1]
FOLDER = Path(distill.__file__).parent / "conf"


def _writer() -> Any:
    spec = importlib.util.spec_from_file_location("write_recipes", ROOT / "docs" / "write_recipes.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WRITER = _writer()
PUBLISHED: dict[str, Any] = WRITER.published()
#: Stages after the first.
LATER = {name for name, recipe in PUBLISHED.items() if len(recipe.get("stages", ())) > 1}
#: The families of priors that are not of Stable Diffusion's.
FAMILIES = {"if-xl": "pixel", "imagedream": "multi_view_image"}
#: Experiment and family of each recipe in the table.
TABLED = {
    (recipe.get("experiment", name), FAMILIES.get(recipe["prior"], "latent")): name
    for name, recipe in PUBLISHED.items()
    if name not in LATER
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_values(name: str) -> None:
    recipe = PUBLISHED[name]
    config = WRITER.composed(name, recipe)
    options = [option for option, _, _ in recipe["rows"] if option is not None]
    assert len(options) == len(set(options))
    found = {option: WRITER.setting(config, option) for option in options}
    assert found == {option: value for option, value, _ in recipe["rows"] if option is not None}


def test_every_recipe_is_beside_its_published_values() -> None:
    files = {path.stem for path in (FOLDER / "recipe").glob("*.yaml")}
    named = {
        f"{family}_{PUBLISHED[name].get('scene', 'hash_grid')}_{experiment}"
        for (experiment, family), name in TABLED.items()
    }
    # What is another's copy in one family needs no table of its own.
    assert files - named == {
        "pixel_hash_grid_dreamtime",
        "latent_hash_grid_tp_sds",
        "pixel_hash_grid_tp_sds",
        "multi_view_hyper_conv_scaledreamer_dl17k",
    }
    assert named <= files
    experiments = {path.stem for path in (FOLDER / "experiment").glob("*.yaml")}
    assert experiments == {experiment for experiment, _ in TABLED} | {"tp_sds"}


def test_every_stage_of_an_experiment_is_beside_its_published_values() -> None:
    stages = [
        compose_config(["prompt=x", f"experiment={name}"]).stages
        for name in ("magic3d", "fantasia3d", "prolificdreamer")
    ]
    assert {name for of in stages for name in of} == LATER | {"field"}
    assert all(
        list(of) in [recipe["stages"] for recipe in PUBLISHED.values() if "stages" in recipe] for of in stages
    )


def options_in(values: dict[str, Any], shown: set[str], prefix: str = "") -> set[str]:
    """Dotted names of a file's options, down to those that are shown, which may be schedules."""
    found: set[str] = set()
    for name, value in values.items():
        option = f"{prefix}{name}"
        inside = isinstance(value, dict) and option not in shown
        found |= options_in(value, shown, f"{option}.") if inside else {option}
    return found


def test_a_recipe_sets_nothing_that_its_table_does_not_show() -> None:
    for name, recipe in PUBLISHED.items():
        family = FAMILIES.get(recipe["prior"], "latent")
        scene = recipe.get("scene", "hash_grid")
        path = FOLDER / "recipe" / f"{family}_{scene}_{recipe.get('experiment', name)}.yaml"
        path = FOLDER / "tuned" / "stage" / f"{family}_{name}.yaml" if name in LATER else path
        loaded: Any = OmegaConf.to_container(OmegaConf.load(path))
        loaded.pop("defaults", None)
        shown = {option for option, _, _ in recipe["rows"] if option}
        # How prompts name the view is implied by Perp-Neg.
        assert options_in(loaded, shown) - shown <= {"view_words"}, name


def test_the_page_shows_what_the_configuration_says() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert WRITER.written(page) == page
    assert {found[2] for found in WRITER.MARKED.finditer(page)} == set(PUBLISHED)


#: Recipes for a library of prompts, which have a scene of their own.
LIBRARIES = {name for name, recipe in PUBLISHED.items() if "scene" in recipe}


@pytest.mark.parametrize("name", sorted({experiment for experiment, _ in TABLED}))
def test_on_the_prior_that_ships_an_experiment_keeps_what_suits_that_prior(name: str) -> None:
    many = [f"scene={PUBLISHED[name]['scene']}", "prompts=x"] if name in LIBRARIES else ["prompt=a red mug"]
    plain = compose_config(many)
    config = compose_config(
        [*many[-1:], f"experiment={name}", *(["stages=[field]"] * (name not in LIBRARIES))]
    )
    for option in (
        "iterations",
        "render",
        "optimiser",
        "scene",
        "cameras",
        "penalties",
        "views",
        "particles",
    ):
        assert OmegaConf.select(config, option) == OmegaConf.select(plain, option), option


def test_a_recipe_is_for_the_hash_grid_and_the_command_line_wins() -> None:
    words = ["prompt=x", "prior=sd-2.1-base", "experiment=prolificdreamer", "stages=[field]"]
    assert compose_config([*words[:3], "scene=image", "view_words=none"]).iterations == 10_000
    assert compose_config([*words, "scene=image", "view_words=none"]).iterations == 10_000
    config = compose_config([*words, "iterations=3", "penalties.sparsity=2", "scene.background=white"])
    assert (config.iterations, config.penalties.sparsity, config.scene.background) == (3, 2, "white")


#: Commands of the page that stand for a configuration without a recipe of its own, by an option that is in them alone, and the
#: published values.
VARIANTS: dict[str, dict[str, Any]] = {
    # Classifier score distillation, configs/csd-if-object.yaml; a change at step 2,001 is at a fraction of 10,000.
    "cameras.front_back=0": {
        "iterations": 10_000, "render.batch": 4, "render.size": 64, "perp_neg.enabled": False, "views.front_deg": 30.0,
        "cameras.elevation_deg": [-10, 90], "cameras.distance": [1.5, 2.0], "cameras.front_back": 0.0, "guidance.normalise": True,
        "render.turns.normals": {"start": 0, "end": 0.5, "from_fraction": 0.2001, "to_fraction": 0.2001},
        "penalties.orientation": {"start": 1, "end": 20, "from_fraction": 0.5, "to_fraction": 0.5}, "penalties.sparsity": 1.0,
        "scene.radius": 2.0, "scene.levels": 16, "scene.finest_resolution": round(16 * 1.381912879967776**15),
    },
    # HiFA's own main.py, nerf/sd.py and nerf/network_grid.py: the loss times 0.05, the grid's rate ten times the networks'.
    "guidance.weighting=constant": {
        "iterations": 10_000, "guidance_weight": 0.05, "guidance.scale": 100.0, "guidance.image_weight": 0.1, "render.size": 512,
        "perp_neg.enabled": True, "perp_neg.curves": "authors", "timesteps.t_min": 0.3, "timesteps.t_max": 0.98,
        "cameras.distance": [3.0, 3.5], "cameras.fov_y_deg": [10, 30], "cameras.elevation_deg": [-15, 45],
        "cameras.by_area": 0.5, "cameras.area_elevation_deg": [0, 90], "penalties.sparsity": 0.0,
        "penalties.z_variance": {"start": 0, "end": pytest.approx(3 * 512**2 / 4, rel=0.02), "to_fraction": 0.5},
        "scene.blob_scale": 5.0, "scene.blob_radius": 0.2, "scene.encoding_lr": 0.05, "scene.mlp_lr": 0.005,
        "scene.background_lr": 0.005, "scene.random_background": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("word", VARIANTS)
def test_a_command_of_the_page_has_the_published_values(word: str) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text().replace("\\\n", " ")
    (line,) = [line for line in page.splitlines() if line.startswith("distill ") and word in line]
    prompt, words = split_prompt(shlex.split(line)[1:])
    config: Any = OmegaConf.to_container(compose_config([*words, f"prompt={prompt}"]))
    assert {option: WRITER.setting(config, option) for option in VARIANTS[word]} == VARIANTS[word]


#: Sizes for a test: all else is the recipe's own. A scene is looked over again in every sixteenth step.
SCALED: dict[str, Any] = {
    "iterations": 9, "scene.log2_table_size": 8, "scene.march_steps": 16, "scene.occupancy_resolution": 8,
    "export.enabled": False, "log.tensorboard": False, "log.preview_every": 0, "log.checkpoint_every": 0,
    "render.batch": 1, "preset": "latent",
}  # fmt: skip


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> DiffusionPrior:
    folder = tmp_path_factory.mktemp("sd")
    make("stable_diffusion").save_pretrained(folder)
    return distill.load_prior(folder, dtype=torch.float32, image_size=64)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({e for e, family in TABLED if family == "latent"} - LIBRARIES))
def test_some_steps_of_a_recipe(prior: DiffusionPrior, name: str, tmp_path: Path) -> None:
    size = WRITER.setting(
        WRITER.composed(TABLED[name, "latent"], PUBLISHED[TABLED[name, "latent"]]), "render.size"
    )
    scaled = {**size, "start": 8, "end": 16} if isinstance(size, dict) else 8
    told = {**SCALED, "experiment": name, "render.size": scaled, "stages": ["field"]}
    asset = distill.generate("a red mug", prior=prior, output_dir=tmp_path / "run", **told)
    assert asset.manifest["skipped_steps"] == 0
    metrics = [line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if line]
    assert len(metrics) == SCALED["iterations"]


@pytest.mark.slow
def test_some_steps_of_prolificdreamers_three_stages(prior: DiffusionPrior, tmp_path: Path) -> None:
    told = {
        **SCALED,
        "iterations": 2,
        "experiment": "prolificdreamer",
        "render.size": 8,
        "stage.field.render.size": 8,
    }
    scene = {
        f"stage.prolificdreamer_{name}.scene.{option}": 8
        for name in ("geometry", "texture")
        for option in ("resolution", "detail")
    }
    asset = distill.generate("a red mug", prior=prior, output_dir=tmp_path / "run", **told, **scene)
    rows = [(row["folder"], row["iterations"]) for row in asset.manifest["stages"]]
    assert rows == [("stages/1-field", 2), ("stages/2-prolificdreamer_geometry", 2), (".", 2)]
    assert "conversion" in asset.manifest["stages"][1]
    losses = [
        json.loads((tmp_path / "run" / folder / "manifest.json").read_text())["guidance"]
        for folder, _ in rows
    ]
    assert losses == ["vsd", "sds", "vsd"]
    geometry, texture = (
        load_checkpoint(tmp_path / "run" / folder / "checkpoints", torch.device("cpu"))
        for folder, _ in rows[1:]
    )
    assert geometry is not None and texture is not None
    # The third stage keeps the second one's shape, and the second one its field's colours.
    assert torch.equal(geometry["scene"]["change.grid"], texture["scene"]["change.grid"])
    assert not torch.equal(geometry["scene"]["colours.grid"], texture["scene"]["colours.grid"])
    field = load_checkpoint(tmp_path / "run" / "stages" / "1-field" / "checkpoints", torch.device("cpu"))
    assert field is not None and torch.equal(field["scene"]["grid"], geometry["scene"]["colours.grid"])


@pytest.mark.parametrize("name", sorted(LIBRARIES))
def test_some_steps_of_a_librarys_recipe(prior: DiffusionPrior, name: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red mug\na blue mug\n")
    told = {key: value for key, value in SCALED.items() if key != "scene.log2_table_size"}
    told |= {"iterations": 4, "experiment": name, "render.size": 8, "export.enabled": False}
    own = (
        {"log2_table_size": 8}
        if PUBLISHED[name]["scene"] == "hyper_grid"
        else {"channels": [4], "finest_resolution": 8}
    )
    told |= {f"scene.{key}": value for key, value in own.items()}
    options: dict[str, Any] = {**told, "scene": PUBLISHED[name]["scene"]}
    folder = amortise(tmp_path / "prompts.txt", prior=prior, output_dir=tmp_path / "run", **options)
    assert json.loads((folder / "manifest.json").read_text())["skipped_steps"] == 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4


def test_shadings_take_turns_by_their_shares() -> None:
    draw = by_turns({"lambertian": Ramp(0.0, 0.25, 0.5, 0.5), "normals": Ramp(0.0, 0.5, 0.5, 0.5)})
    g = torch.Generator().manual_seed(0)
    before = g.get_state()
    assert draw(0.49, g) == "albedo"
    assert torch.equal(g.get_state(), before), "nothing is drawn while no share is above 0"
    drawn = [draw(0.5, g) for _ in range(4000)]
    shares = {kind: drawn.count(kind) / 4000 for kind in set(drawn)}
    # Four standard deviations of a share of 4000 draws are at most 0.032.
    assert shares == pytest.approx({"lambertian": 0.25, "normals": 0.5, "albedo": 0.25}, abs=0.032)
