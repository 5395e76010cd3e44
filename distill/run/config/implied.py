"""Options that follow from others on a command line: a preset, the timesteps of an alias, the scene of an earlier run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.conditions.prompt_library import listed
from distill.embedded.prompt import kind_of, object_of, prior_for
from distill.embedded.vocabulary import of_prior
from distill.files.paths import user_path
from distill.priors.preset import preset_of, shown_picture, told_cameras
from distill.run.assembly.scenes import scene_of_run
from distill.run.config.overrides import as_overrides, split_word
from distill.run.config.plugins import ALIASES, plugins
from distill.run.config.slips import check_words
from distill.run.folder.earlier import follows_from, takes_field
from distill.run.several.generator import implied_by

EXPERIMENTS = Path(__file__).parents[2] / "conf" / "experiment"
#: Parts that a plain run does not have.
NOT_PLAIN = {"experiment", "stages", "init", "generator", "mesh", "scene"}


def with_implied(overrides: Sequence[str]) -> list[str]:
    """The words of a command line with those that follow from them, see ``implied``.

    Raises:
        ValueError: a word is a slip, see ``check_words``, or what follows from one cannot be found.
    """
    check_words(overrides)
    words = [re.sub(r"^\+(experiment|preset)=", r"\1=", word) for word in overrides]
    words = [re.sub(r"^mesh=(?!\{|null$)", "mesh.file=", word) for word in words]
    words = [
        re.sub(r"^(export\.formats|stages)=(?!null$)['\"]?([\w, ]+)['\"]?$", r"\1=[\2]", word)
        for word in words
    ]
    kept = [word for word in words if not _is_alias(*split_word(word))]
    return [*(each for word in kept for each in (*cleared(word), word)), *implied(words)]


def _is_alias(key: str, value: str) -> bool:
    return key == "guidance" and value in ALIASES


def cleared(word: str) -> list[str]:
    """Return the word that clears an option for a schedule: Hydra would add a mapping's fields to those that a file gives."""
    found = re.match(r"([a-z][\w.]*)=\{\s*(?:\w+\s*:[^,}]*,\s*)*start\s*:", word)
    return [f"{found[1]}=null"] if found else []


def implied(words: Sequence[str]) -> dict[str, str]:
    """Return the options that a command line implies, each with its reason.

    The preset fits the picture's model, the embedded prior or the prior's family; a picture with a prompt is guided by both; an
    alias stands for a loss and its timesteps; a scene to begin with has its own options.

    Raises:
        ValueError: other timesteps are given beside an alias.
    """
    given = dict(map(split_word, words))
    found: dict[str, str] = {}
    earlier, begun = _named(given, "init"), dict[str, str]()
    if _named(given, "mesh.file") and "scene" not in given:
        found["scene=surface"] = "follows from mesh="
        given["scene"] = "surface"
    if earlier:
        found |= (begun := _begun(earlier, given))
    if (alias := given.get("guidance", "")) in ALIASES:
        found |= expanded(alias, given.get("timesteps"))
    if folder := _named(given, "generator"):
        found |= _generated(folder, given)
    scene = plugins()["scene"].get(given.get("scene", ""))
    if scene and takes_field(scene) and earlier:
        found |= _followed(follows_from(earlier, scene), given, "init")
    shipped = _shipped(given)
    prior = "things" if shipped else given.get("prior", "embedded")
    own = _of_bundled({**dict(map(split_word, begun)), **given}, prior)
    return found | shipped | own | _cameras(given) | _preset(given, prior)


def _begun(earlier: str, given: Mapping[str, str]) -> dict[str, str]:
    """The scene of an earlier run and the mesh that it textures, where no other scene is given.

    Raises:
        ValueError: the mesh is not there.
    """
    before = scene_of_run(earlier, plugins()["scene"])
    if given.get("scene", before.get("scene")) != before.get("scene"):
        return {}
    mesh = before.get("mesh.file")
    if mesh and not _named(given, "mesh.file") and not user_path(mesh).is_file():
        raise ValueError(
            f"init={earlier} textures mesh={mesh}, which is not there; give that mesh as mesh=FILE"
        )
    return _followed(before, given, "init")


def _generated(folder: str, given: dict[str, str]) -> dict[str, str]:
    """What follows from a generator; its prior is given from then on.

    Raises:
        ValueError: another scene is given, or the prior is not there.
    """
    own = implied_by(folder)
    if mesh := _named(given, "mesh.file"):
        raise ValueError(
            f"generator={folder} makes the scene, and mesh={mesh} would be another; leave out one of them"
        )
    if given.get("scene", own["scene"]) != own["scene"]:
        raise ValueError(f"generator={folder} makes scene={own['scene']}; leave out scene={given['scene']}")
    prior = Path(str(own["prior"]))
    if "prior" not in given and prior.is_absolute() and not prior.exists():
        raise ValueError(
            f"generator={folder} was made with prior={prior}, which is not there; give a copy of it as prior=FOLDER"
        )
    found = _followed(own, given, "generator")
    given.setdefault("prior", str(own["prior"]))
    return found


def _shipped(given: Mapping[str, str]) -> dict[str, str]:
    """The prior of real objects, where no prior is given and a prompt is of more than the embedded world."""
    if "prior" in given or _of_the_users_own(given.get("experiment", "")) or "preset" in given:
        return {}
    return {} if prior_for(_texts(given)) == "embedded" else {"prior=things": "follows from the prompt"}


def _of_bundled(given: Mapping[str, str], prior: str) -> dict[str, str]:
    """What suits the bundled text-to-image priors in the main job, and in a further stage of it.

    Only noisy timesteps are drawn at first: at others, these priors keep or erase the faint blob that a scene begins with. For real
    objects, a larger scale chooses one of those that a name may mean; a small one blends them.
    """
    parts = _parts(given) - ({"stages"} if given.get("stages") == "[]" else set())
    # A further stage has been composed of its own words, without ``stages``; its scene may be that of the run that it begins with.
    same = "init" in parts and given.get("scene") == "hash_grid"
    second = takes_field(plugins()["scene"].get(given.get("scene", "")))
    further = {"stages", "init"} | ({"scene"} if same or second else set())
    if given.get("guidance", "") in ALIASES or parts & {*NOT_PLAIN, "image", "preset"} - further:
        return {}
    own = of_prior(prior)
    if own is None or told_cameras(prior) or not (texts := _texts(given)):
        return {}
    why, found = f"follows from prior={prior}", dict[str, str]()
    if not parts & {"timesteps", *further}:
        found["timesteps.t_min=0.96"] = why
    plain = given.get("guidance", "sds") == "sds" and "guidance.scale" not in given
    if plain and own.things and not all(kind_of(text, own) for text in texts):
        found["guidance.scale=5"] = why
    return found


def _named_thing(given: Mapping[str, str], prior: str) -> bool:
    """Tell whether a plain run's prompt is of a real object that its prior knows."""
    parts = _parts(given)
    if parts & {*NOT_PLAIN, "guidance"}:
        return False
    own, texts = of_prior(prior), _texts(given)
    return own is not None and bool(texts) and all(object_of(text, own) for text in texts)


def _parts(given: Mapping[str, str]) -> set[str]:
    """The parts that a command line chooses or sets options of; of the scene, only its choice: to set its options is to tune it."""
    return {name.partition(".")[0] for name in given if not name.startswith("scene.")}


def _texts(given: Mapping[str, str]) -> list[str]:
    """The prompts of a command line."""
    texts = [text for name in ("prompt", "source_prompt") if (text := _named(given, name))]
    return [*texts, *(listed(file) if (file := _named(given, "prompts")) else ())]


def _of_the_users_own(experiment: str) -> bool:
    """Tell whether an experiment is none of the library's, so that it may choose a prior."""
    return bool(experiment) and not (EXPERIMENTS / f"{experiment}.yaml").is_file()


def _named(given: Mapping[str, str], option: str) -> str:
    """The file or folder that an option names, empty for none."""
    value = given.get(option, "null")
    return "" if value == "null" else value


def _followed(options: Mapping[str, Any], given: Mapping[str, str], source: str) -> dict[str, str]:
    """Options that follow from another, ``source``, except for those that are given."""
    own = {key: value for key, value in options.items() if key not in given}
    return dict.fromkeys(as_overrides(own), f"follows from {source}=")


def _cameras(given: Mapping[str, str]) -> dict[str, str]:
    if not takes_views(given):
        return {}
    found = {"cameras=groups": f"follows from prior={given['prior']}"}
    views = given.get("prior_options.views", "null")
    if views != "null" and "cameras.views" not in given:
        found[f"cameras.views={views}"] = f"follows from prior_options.views={views}"
    return found


def _preset(given: Mapping[str, str], chosen: str) -> dict[str, str]:
    """The preset that fits; ``chosen`` is the prior, which the prompt may have decided."""
    if "preset" in given:
        return {}
    if _named(given, "image") and shown_picture(given.get("prior", "embedded")):
        return {"preset=multi_view_image": f"follows from image= with prior={given['prior']}"}
    if _named(given, "image"):
        bundled = given.get("novel_view", "embedded") == "embedded"
        if bundled and _named_thing(given, chosen):
            why = "follows from a real object's name with image="
            kept = "scene.background" in given and "reference.backdrop" not in given
            own = {"reference.backdrop=null": "follows from scene.background="} if kept else {}
            return {"preset=things_image": why, "guidance=mix": why} | own
        found = {"preset=embedded_image" if bundled else "preset=image": "follows from image="}
        mixed = given.get("prompt") and "guidance" not in given
        return found | ({"guidance=mix": "follows from a prompt with image="} if mixed else {})
    if (prior := given.get("prior", "embedded")) == "embedded":
        return {}
    single = given.get("prior_options.views") == "1"
    return {f"preset={preset_of(prior, single=single)}": f"follows from prior={prior}"}


def takes_views(given: Mapping[str, str]) -> bool:
    """Tell whether options name a multi-view prior that is to take several views, so that cameras are drawn in groups."""
    prior = given.get("prior", "embedded")
    if prior == "embedded" or given.get("prior_options.views") == "1" or "cameras" in given:
        return False
    return told_cameras(prior)


def expanded(alias: str, timesteps: str | None) -> dict[str, str]:
    """Return the loss and the timesteps that an alias stands for, each with its reason.

    Raises:
        ValueError: other ``timesteps`` are given beside it.
    """
    loss, own = ALIASES[alias]
    if timesteps is not None and not timesteps.startswith(own):
        raise ValueError(
            f"guidance={alias} is {loss} with timesteps={own}, so it does not go with timesteps={timesteps}; leave one of them "
            f"out, or write guidance={loss} timesteps={timesteps}"
        )
    chosen = {f"guidance={loss}": f"follows from guidance={alias}"}
    return chosen if timesteps else {**chosen, f"timesteps={own}": f"follows from guidance={alias}"}
