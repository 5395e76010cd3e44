"""Where priors come from: folders, the hub (a small one of our own, over HTTP), and every way not to be there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_pipelines import make

from distill.cli import main
from distill.priors.families import FAMILIES
from distill.priors.source import find, licence_of, needed, patterns, variant_of
from distill.priors.table import MODELS
from distill.priors.whole import check_weights

COMMIT = "1234567890abcdef1234567890abcdef12345678"

PINNED = MODELS["sd-1.5"].revision


@dataclass
class Hub:
    """What the hub says of repositories: their files, or the error code that it gives."""

    repositories: dict[str, Path | str]
    asked: list[str] = field(default_factory=list)
    url: str = ""


def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | str]:
    """What the hub has: folders, or the error that it answers with."""
    good = tmp_path_factory.mktemp("good")
    make("stable_diffusion").save_pretrained(good)
    (good / "README.md").write_text("---\nlicense: openrail\ntags: [a]\n---\nA model.\n")
    (good / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"junk")
    (good / "whole.ckpt").write_bytes(b"junk")
    pickled = tmp_path_factory.mktemp("pickled")
    (pickled / "unet").mkdir()
    (pickled / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"junk")
    (pickled / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    control = tmp_path_factory.mktemp("control")
    for file in (
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
        "extra/a.json",
    ):
        (control / file).parent.mkdir(exist_ok=True)
        (control / file).write_text("{}")
    (control / "README.md").write_text("---\nlicense: apache-2.0\n---\nA ControlNet.\n")
    views = tmp_path_factory.mktemp("views")
    for file in (
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin", "scheduler/scheduler_config.json", "image_encoder/model.safetensors",
        "cc_projection/config.json", "cc_projection/diffusion_pytorch_model.safetensors", "model_index.json", "run.py",
        "safety_checker/model.safetensors",
    ):  # fmt: skip
        (views / file).parent.mkdir(exist_ok=True)
        (views / file).write_text("{}")
    old = tmp_path_factory.mktemp("old")
    for file in ("unet/config.json", "unet/diffusion_pytorch_model.bin"):
        (old / file).parent.mkdir(exist_ok=True)
        (old / file).write_text("{}")
    return {
        "us/views": views, "us/old-views": old,
        "us/control": control, "us/good": good, "us/pickled": pickled, "us/gated": "GatedRepo", "us/none": "RepoNotFound",
        "us/empty": "EntryNotFound", MODELS["sd-1.5"].repository: good, MODELS["sdxl"].repository: "GatedRepo",
    }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does; of one hub in each subclass."""

    known: Hub
    commit = COMMIT

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.known.asked.append(path)
        parts = path.removeprefix("api/models/").split("/")
        there = self.known.repositories.get("/".join(parts[:2]), "RepoNotFound")
        if "revision" in parts[2:3] + parts[3:4] or path.startswith("api/"):
            return self.say_of(there, parts)
        if isinstance(there, str):
            return self.fail(there)
        if parts[3] not in ("main", COMMIT, PINNED):
            return self.fail("RevisionNotFound")
        self.commit = PINNED if parts[3] == PINNED else COMMIT
        file = there.joinpath(*parts[4:])
        return self.give(file.read_bytes()) if file.is_file() else self.fail("EntryNotFound")

    def say_of(self, there: Path | str, parts: list[str]) -> None:
        if isinstance(there, str) and there != "EntryNotFound":
            return self.fail(there)
        if parts[2:3] == ["revision"] and parts[3] not in ("main", COMMIT, PINNED):
            return self.fail("RevisionNotFound")
        names = [] if isinstance(there, str) else [p for p in there.rglob("*") if p.is_file()]
        files = [{"rfilename": str(p.relative_to(there))} for p in names]
        if "tree" in parts:
            tree = [
                {
                    "type": "file",
                    "path": str(p.relative_to(there)),
                    "size": p.stat().st_size,
                    "oid": "0" * 40,
                }
                for p in names
            ]
            return self.give(json.dumps(tree).encode(), "application/json")
        about = {
            "id": "/".join(parts[:2]),
            "sha": PINNED if PINNED in parts else COMMIT,
            "siblings": files,
            "tags": [],
            "private": False,
        }
        self.give(json.dumps(about).encode(), "application/json")

    def give(self, content: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def fail(self, code: str) -> None:
        self.send_response(403 if code == "GatedRepo" else 404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    known = Hub(repositories(tmp_path_factory))
    answers = type("Answers", (Handler,), {"known": known})
    server = ThreadingHTTPServer(("127.0.0.1", 0), answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    known.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield known
    server.shutdown()


def ask(
    names: str | Sequence[str], home: Path, url: str, find: str = "find", call: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    """Find priors in a process of its own, for the hub's client reads its settings once; a line for each, and its exit code."""
    code = (
        "import time; time.sleep = lambda seconds: None\n"  # the hub's client waits for 23 s between its tries
        f"import sys, json; from distill.priors.source import {find}\n"
        "code = 0\n"
        "for name in sys.argv[1:]:\n"
        f"    try: print(json.dumps({{k: str(v) for k, v in vars(({call or find})(name)).items()}}))\n"
        "    except ValueError as error: code = print(f'error: {error}', file=sys.stderr) or 1\n"
        "sys.exit(code)"
    )
    settings = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "5",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **more,
    }
    said = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | settings
    asked = [names] if isinstance(names, str) else names
    return subprocess.run(
        [sys.executable, "-c", code, *asked], capture_output=True, text=True, env=said, timeout=100
    )


def check_refused(
    asked: subprocess.CompletedProcess[str], remedies: Mapping[str, str], found: int = 0
) -> None:
    """Whether each was refused with one line, which says what is expected, and as many others were found."""
    lines = asked.stderr.strip().splitlines()
    assert (asked.returncode, len(asked.stdout.splitlines())) == (1, found)
    assert len(lines) == len(remedies), asked.stderr
    for line, said in zip(lines, remedies.values(), strict=True):
        assert line.startswith("error: ") and said in line


@pytest.mark.slow
def test_a_repository_is_fetched_once_and_found_again_offline(hub: Hub, tmp_path: Path) -> None:
    first = ask(["us/good", f"us/good@{COMMIT}"], tmp_path, hub.url)
    assert first.returncode == 0, first.stderr
    found, pinned = map(json.loads, first.stdout.splitlines())
    folder = Path(found["folder"])
    assert found["revision"] == COMMIT and found["licence"] == "openrail" and found["repository"] == "us/good"
    names = {path.name for path in folder.rglob("*")}
    assert "diffusion_pytorch_model.safetensors" in names
    assert not any(name.endswith((".bin", ".ckpt")) for name in names)
    asked = len(hub.asked)
    again = ask("us/good", tmp_path, hub.url, HF_HUB_OFFLINE="1")
    assert json.loads(again.stdout) == found
    assert len(hub.asked) == asked
    assert pinned["revision"] == COMMIT


@pytest.mark.slow
def test_a_controlnet_is_fetched_too(hub: Hub, tmp_path: Path) -> None:
    remedies = {
        "us/empty": "us/empty has no config.json, so it is no ControlNet of diffusers",
        "us/gated": "ControlNet us/gated is gated",
    }
    asked = ask(["us/control", *remedies], tmp_path, hub.url, "find_controlnet")
    check_refused(asked, remedies, found=1)
    found = json.loads(asked.stdout)
    assert (found["revision"], found["licence"]) == (COMMIT, "apache-2.0")
    names = {path.name for path in Path(found["folder"]).rglob("*") if path.is_file()}
    assert names == {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}


@pytest.mark.slow
def test_the_settings_of_a_single_file_are_its_kinds_without_weights(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(16, 4, 3, 3)}, file)
    home = tmp_path / "home"
    lost = ask(str(file), home, hub.url, HF_HUB_OFFLINE="1")
    (line,) = lost.stderr.strip().splitlines()
    repository = MODELS["sd-1.5"].repository
    assert (
        f"{file} has the settings of {repository}: they are not in the hub's cache, and HF_HUB_OFFLINE"
        in line
    )
    assert f"hf download {repository} --include" in line and "prior_options.config=FOLDER" in line
    xl = tmp_path / "xl.safetensors"
    save_file({"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1)}, xl)
    first = ask([str(file), str(xl)], home, hub.url)
    found = json.loads(first.stdout)
    names = {path.name for path in Path(found["folder"]).rglob("*") if path.is_file()}
    assert {"model_index.json", "scheduler_config.json", "tokenizer_config.json"} <= names
    assert not any(name.endswith((".safetensors", ".bin", ".ckpt")) for name in names)
    assert found["settings"] == f"{repository}@{PINNED}" and found["file"] == str(file)
    (gated,) = first.stderr.strip().splitlines()
    assert "is gated: accept its terms" in gated and "prior_options.config=FOLDER" in gated


NOVEL_VIEW = "__import__('functools').partial(find_novel_view, embedded=__import__('pathlib').Path('none'))"


@pytest.mark.slow
def test_a_novel_view_model_is_fetched_too(hub: Hub, tmp_path: Path) -> None:
    """In full precision, and without code or what is not needed; each way not to be there is one line."""
    remedies = {
        "us/empty": "us/empty has no unet/config.json, so it is no novel-view model of diffusers",
        "us/old-views": "unet has pickled weights alone; download the repository and convert it",
        "nowhere": "novel_view must be 'embedded', a hub id such as owner/repository@revision, or a folder of",
    }
    asked = ask(["us/views", *remedies], tmp_path, hub.url, "find_novel_view", NOVEL_VIEW)
    check_refused(asked, remedies, found=1)
    found = json.loads(asked.stdout)
    assert (found["revision"], found["name"]) == (COMMIT, "us/views")
    folder = Path(found["folder"])
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json",
        "image_encoder/model.safetensors", "cc_projection/config.json",
        "cc_projection/diffusion_pytorch_model.safetensors", "model_index.json",
    }  # fmt: skip


@pytest.mark.slow
def test_each_way_not_to_be_there_has_its_remedy(hub: Hub, tmp_path: Path) -> None:
    remedies = {
        "us/gated": "prior us/gated is gated: accept its terms at https://huggingface.co/us/gated",
        "us/none": "there is no us/none on the hub: removed, renamed, private, or misspelt",
        "us/empty": "us/empty has no model_index.json",
        "us/good@0000000000000000000000000000000000000000": "has no revision 00000",
        "us/pickled": "unet has pickled weights alone; download the repository and convert it: python -m distill.convert",
    }
    check_refused(ask([*remedies], tmp_path, hub.url), remedies)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [({}, "the hub is out of reach"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
)
def test_no_network_is_said(tmp_path: Path, more: dict[str, str], said: str) -> None:
    asked = ask("us/good", tmp_path, "http://127.0.0.1:9", **more)
    assert asked.returncode == 1
    assert said in asked.stderr
    assert (
        "hf download us/good" in asked.stderr.strip().splitlines()[-1]
    )  # the client tells of its retries before


def test_a_local_folder_says_its_licence(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    assert find(tmp_path).licence == ""
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: 'mit'\n---\nlicense: other\n")
    assert find(tmp_path).licence == licence_of(tmp_path) == "mit"
    with pytest.raises(
        ValueError, match="a name that 'distill priors' lists, a hub id such as owner/repository@revision"
    ):
        find(tmp_path / "nowhere")


def test_the_table_of_known_models_is_consistent(capsys: pytest.CaptureFixture[str]) -> None:
    for name, model in MODELS.items():
        assert re.fullmatch(r"[a-z0-9.-]+", name)
        assert model.pipeline in FAMILIES
        for repository in (model.repository, *model.mirrors):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", repository)
        assert re.fullmatch(r"([0-9a-f]{40})?", model.revision)
        assert model.licence and model.millions > 0 and model.scale >= 1
        assert model.image_size % 64 == 0
        assert (model.image_size == 64) == (model.pipeline == "IFPipeline")
    with pytest.raises(SystemExit) as stopped:
        main(["priors"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown and model.repository in shown for name, model in MODELS.items())
    # First of all those that need no download.
    assert [line.split()[0] for line in shown.splitlines()[2:5]] == ["embedded", "things", "views"]
    assert "419 real objects" in shown.splitlines()[3]


def test_half_precision_is_taken_where_there_is_a_choice(tmp_path: Path) -> None:
    files = [
        "model_index.json", "README.md", "big.safetensors", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.bin", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors", "safety_checker/model.safetensors", "tokenizer/merges.txt",
        "tokenizer/vocab.json", "unet_onnx/model.onnx",
    ]  # fmt: skip
    index = {
        "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "safety_checker": ["a", "b"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "image_encoder": [None, None],
    }  # fmt: skip
    assert sorted(patterns(index, files)) == [
        "README.md", "model_index.json", "tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    (tmp_path / "model.fp16-00001-of-00002.safetensors").touch()
    assert variant_of(tmp_path) == "fp16"
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert variant_of(tmp_path) is None


def test_of_a_variant_in_parts_the_index_is_fetched_too(tmp_path: Path) -> None:
    """As transformers writes one: the variant stands behind ``index`` in its name."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(tmp_path / "text_encoder", variant="fp16", max_shard_size="20KB")
    own = sorted(f"text_encoder/{path.name}" for path in (tmp_path / "text_encoder").iterdir())
    other = [name.replace(".fp16", "") for name in own if ".fp16" in name]
    found = needed("text_encoder", "text_encoder/", [*own, *other])
    assert sorted(found) == own and any(name.endswith(".index.fp16.json") for name in own)
    check_weights(tmp_path, "text_encoder")
    next((tmp_path / "text_encoder").glob("*.index.*")).unlink()
    with pytest.raises(ValueError, match="is a part of weights whose index is missing") as caught:
        check_weights(tmp_path, "text_encoder")
    assert "\n" not in str(caught.value)
