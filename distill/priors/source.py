"""Find a prior's files: bundled, in a local folder, or on the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.convert import SUFFIXES
from distill.embedded.vocabulary import SHIPPED
from distill.files.atomic import sha256_once
from distill.files.paths import user_path
from distill.priors.header import kind_of, parts_in, shapes_of
from distill.priors.multi_view.published import marked
from distill.priors.table import MODELS

#: Parts of pipelines that no prior needs.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder", "watermarker", "prior", "super_res")
#: How names of weights in half precision differ: model.fp16.safetensors, model.fp16-00001-of-00002.safetensors.
HALF = r"\.(fp16|bf16)[.-]"
#: The file that says what a folder holds.
INDEX = {
    "prior": "model_index.json",
    "ControlNet": "config.json",
    "VAE": "config.json",
    "settings": "model_index.json",
    "novel-view model": "unet/config.json",
}
#: Folders of a novel-view model, the published layouts' among them.
NOVEL_VIEW = (
    "unet",
    "vae",
    "scheduler",
    "image_encoder",
    "conditioning",
    "cc_projection",
    "clip_camera_projection",
)
#: What settings and tokenizers end with.
SETTINGS = (".json", ".txt", ".model")
#: What a hub id looks like.
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True)
class Source:
    """A prior's folder and its origin.

    Attributes:
        folder: in the diffusers layout; of a prior in a single file, the settings, and the parts that the file lacks.
        name: what it was asked for by.
        repository: on the hub, empty for a local folder.
        revision: the commit, empty for a local folder.
        licence: as its card or the table says, empty where unknown.
        file: a single file with the prior's weights, or None where the folder has them.
        parts: of the pipeline that the file has.
        settings: where the settings beside a file are from.
        marks: what the file's tensors say and its settings do not: ``v_pred`` and ``ztsnr`` by empty ones of these names,
            ``cameras`` by the layers of a multi-view model, and ``picture`` by ImageDream's.
    """

    folder: Path
    name: str
    repository: str = ""
    revision: str = ""
    licence: str = ""
    file: Path | None = None
    parts: frozenset[str] = frozenset()
    settings: str = ""
    marks: frozenset[str] = frozenset()

    def describe(self) -> dict[str, Any]:
        """Describe it for a manifest: with the hub's commit, or the SHA-256 of each local file of weights."""
        names = ("name", "repository", "revision", "licence", "settings")
        said = {name: value for name in names if (value := vars(self)[name])}
        kept = self.revision or self.folder.name in self.parts
        files = () if kept else sorted(self.folder.rglob("*.safetensors"))
        own = [(path.relative_to(self.folder), path) for path in files]
        hashes = {str(name): sha256_once(path) for name, path in own if name.parts[0] not in self.parts}
        if self.file:
            hashes = {self.file.name: sha256_once(self.file), **hashes}
        return {**said, "sha256": hashes}


def find(name: str | Path, settings: str | Path | None = None) -> Source:
    """Find the folder of a prior, downloaded from the hub if necessary.

    Args:
        name: ``embedded``, ``things``, ``views``, a local folder or ``.safetensors`` file, a name of ``distill priors``, or
            ``owner/repository[@revision]``.
        settings: a folder in the diffusers layout whose settings are those of a prior in a single file; None for those
            of the published model of its kind.

    Raises:
        ValueError: there is no such prior, or it cannot be fetched, in one line with the remedy.
    """
    text = str(name)
    if is_single(text):
        return find_single(text, settings)
    if settings is not None:
        raise ValueError(
            f"prior_options.config is for a prior in a single .safetensors file, and {text!r} is none; leave it out"
        )
    if text in SHIPPED:
        return Source(SHIPPED[text], text, licence="apache-2.0")
    folder = user_path(text)
    if (folder / "model_index.json").is_file():
        return Source(folder, text, licence=licence_of(folder))
    if text in MODELS:
        model = MODELS[text]
        return fetch(text, model.repository, model.revision, model.licence)
    if found := of_hub(text):
        return found
    why = f"{text!r} has no model_index.json" if folder.exists() else f"there is no {text!r}"
    raise ValueError(
        f"prior must be 'embedded', 'things', 'views', a name that 'distill priors' lists, a hub id such as owner/repository@revision, a "
        f".safetensors file, or a folder in the diffusers layout, but {why}"
    )


def is_single(name: str) -> bool:
    """Tell whether a prior's name is that of a single file, pickled ones among them."""
    path = user_path(name)
    return path.suffix in (".safetensors", *SUFFIXES) and not path.is_dir()


def find_single(name: str, settings: str | Path | None = None) -> Source:
    """A prior in a single file, with a folder of its settings; arguments as for ``find``.

    Raises:
        ValueError: the file cannot be used, or its settings are not to be had; in one line with the remedy.
    """
    file = user_path(name)
    shapes = shapes_of(file)
    kind = kind_of(file, shapes)
    about: dict[str, Any] = {
        "file": file,
        "parts": parts_in(kind, shapes),
        "marks": frozenset({"v_pred", "ztsnr"} & set(shapes)) | marked(shapes),
    }
    if settings is not None:
        folder = user_path(settings)
        if not (folder / INDEX["settings"]).is_file():
            raise ValueError(
                f"prior_options.config must be a folder in the diffusers layout, and {folder} has no {INDEX['settings']}"
            )
        return Source(folder, name, settings=str(settings), **about)
    model = MODELS[kind.begun or kind.known]
    try:
        found = fetch(model.repository, model.repository, model.revision, kind="settings")
    except ValueError as error:
        raise ValueError(
            f"{file} has the settings of {model.repository}: {error}; or give them with prior_options.config=FOLDER, a folder "
            "in the diffusers layout of which the JSON files and tokenizers are used"
        ) from error
    return Source(found.folder, name, settings=f"{found.repository}@{found.revision}", **about)


def find_controlnet(name: str | Path) -> Source:
    """The folder of a ControlNet: a local one in the diffusers layout, or ``owner/repository[@revision]``.

    Raises:
        ValueError: there is none, or it cannot be fetched, in one line with the remedy.
    """
    text = str(name)
    folder = user_path(text)
    if (folder / INDEX["ControlNet"]).is_file():
        return Source(folder, text, licence=licence_of(folder))
    if found := of_hub(text, "ControlNet"):
        return found
    raise ValueError(
        f"prior_options.controlnet must be a folder with a config.json and safetensors, or a hub id such as "
        f"owner/repository@revision, and {text!r} is neither"
    )


def find_novel_view(name: str | Path, embedded: Path) -> Source:
    """The folder of a novel-view model: ``embedded``, a local one, or ``owner/repository[@revision]``.

    Args:
        name: as above.
        embedded: the folder of the bundled model.

    Raises:
        ValueError: there is none, or it cannot be fetched, in one line with the remedy.
    """
    text = str(name)
    folder = embedded if text == "embedded" else user_path(text)
    if (folder / "unet").is_dir():
        return Source(folder, text, licence=licence_of(folder))
    if found := of_hub(text, "novel-view model"):
        return found
    raise ValueError(
        f"novel_view must be 'embedded', a hub id such as owner/repository@revision, or a folder of a novel-view model, got "
        f"{text!r}"
    )


def of_hub(name: str, kind: str = "prior") -> Source | None:
    """What ``owner/repository[@revision]`` names on the hub, see ``fetch``; None for another name, or a path that is there."""
    if not REPOSITORY.fullmatch(name) or user_path(name).exists():
        return None
    repository, _, revision = name.partition("@")
    return fetch(name, repository, revision, kind=kind)


def licence_of(folder: Path) -> str:
    """The licence that a model's card names, or nothing."""
    card = folder / "README.md"
    found = (
        re.match(r"---\n(.*?)\n---", card.read_text(errors="replace"), re.DOTALL) if card.is_file() else None
    )
    line = re.search(r"^license: *(\S+)", found[1], re.MULTILINE) if found else None
    return line[1].strip("'\"") if line else ""


def fetch(name: str, repository: str, revision: str = "", licence: str = "", kind: str = "prior") -> Source:
    """A repository's folder in the hub's cache, what is missing downloaded: safetensors and settings alone.

    ``kind`` is a key of ``INDEX``.

    Raises:
        ValueError: it is gated, gone, or out of reach, or has no safetensors; in one line with the remedy.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    at: dict[str, Any] = {"repo_id": repository, "revision": revision or None}
    try:
        index = Path(hub.hf_hub_download(**at, filename=INDEX[kind], local_files_only=offline()))
        if not offline():
            files = hub.list_repo_files(**at)
            hub.snapshot_download(**at, allow_patterns=wanted(kind, index, files))
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{kind} {name} is gated: accept its terms at https://huggingface.co/{repository}, then 'hf auth login' or set "
            "HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(
            f"{kind} {name} has no revision {revision}; give another after the @, or none"
        ) from error
    except errors.RepositoryNotFoundError as error:
        mirrors = MODELS[name].mirrors if name in MODELS else ()
        known = f"; mirrors: {', '.join(mirrors)}" if mirrors else ""
        raise ValueError(
            f"there is no {repository} on the hub: removed, renamed, private, or misspelt{known}"
        ) from error
    except errors.LocalEntryNotFoundError as error:  # a ValueError, too, in the hub's client below 1.0
        raise _unreachable(kind, name, repository, error) from error
    except errors.EntryNotFoundError as error:
        raise ValueError(
            f"{repository} has no {INDEX[kind]}, so it is no {'pipeline' if kind == 'prior' else kind} of diffusers"
        ) from error
    except ValueError:
        raise
    except Exception as error:  # what a network fails with differs between versions of the hub's client
        raise _unreachable(kind, name, repository, error) from error
    folder = index.parents[INDEX[kind].count("/")]
    return Source(folder, name, repository, folder.name, licence or licence_of(folder))


def wanted(kind: str, index: Path, files: list[str]) -> list[str]:
    """Return the files of a repository that are needed of it; ``index`` is its file that ``INDEX`` names.

    Raises:
        ValueError: a part has no safetensors.
    """
    if kind in ("ControlNet", "VAE"):
        return ["README.md", *needed(kind, "", files)]
    if kind == "novel-view model":
        own = [name for part in NOVEL_VIEW for name in needed(part, f"{part}/", files, half=False)]
        return ["README.md", "model_index.json", *own]
    return patterns(json.loads(index.read_text()), files, weights=kind == "prior")


def _unreachable(kind: str, name: str, repository: str, error: Exception) -> ValueError:
    way = "HF_HUB_OFFLINE is set" if offline() else f"the hub is out of reach ({type(error).__name__})"
    if kind == "settings":
        return ValueError(
            f"they are not in the hub's cache, and {way}; fetch them once where there is a network with 'hf download "
            f'{repository} --include "*.json" "*.txt" "*.model"\''
        )
    return ValueError(
        f"{kind} {name} is not in the hub's cache, and {way}; fetch it once where there is a network with 'hf download "
        f"{repository}', or give a local folder"
    )


def offline() -> bool:
    """Tell whether network access is disabled."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def patterns(index: dict[str, Any], files: list[str], *, weights: bool = True) -> list[str]:
    """Return patterns of the files of a repository that a prior needs.

    Of weights, those in safetensors, and in half precision where they come in several; none without ``weights``.

    Raises:
        ValueError: a part has no safetensors.
    """
    # ImageDream, whose index is MVDream's, is shown what its image encoder makes of a picture.
    unused = set(UNUSED) - (
        {"image_encoder", "feature_extractor"} if index.get("_class_name") == "MVDreamPipeline" else set()
    )
    parts = [
        part for part, kind in index.items() if isinstance(kind, list) and kind[0] and part not in unused
    ]
    found: list[str] = [name for name in ("model_index.json", "README.md") if name in files]
    for part in parts:
        found += needed(part, f"{part}/", files, with_weights=weights)
    return found


def needed(
    part: str, folder: str, files: list[str], *, with_weights: bool = True, half: bool = True
) -> list[str]:
    """Return the files that are needed of one part, directly in a folder of a repository.

    Of weights in several precisions those in half precision, or without ``half`` the others.

    Raises:
        ValueError: it has no safetensors.
    """
    own = [name for name in files if name.startswith(folder) and "/" not in name.removeprefix(folder)]
    settings = [name for name in own if name.endswith(SETTINGS) and ".index." not in name]
    if not with_weights:
        return settings
    weights = [name for name in own if re.search(r"\.safetensors(\.index(\.\w+)?\.json)?$", name)]
    short = [name for name in weights if re.search(HALF, name)]
    full = [name for name in weights if name not in short]
    if not weights and any(name.endswith((".bin", ".ckpt", ".pt")) for name in own):
        raise ValueError(
            f"{part} has pickled weights alone; download the repository and convert it: python -m distill.convert FOLDER"
        )
    return settings + ((short or full) if half else (full or short))


def variant_of(folder: Path) -> str | None:
    """``fp16`` or ``bf16`` where a part's weights come in that alone."""
    names = [path.name for path in folder.glob("*.safetensors*")]
    if not names or any(re.fullmatch(r"\w+?(-\d+-of-\d+)?\.safetensors", name) for name in names):
        return None
    found = re.search(HALF, " ".join(names))
    return found[1] if found else None
