"""What a user gives is used as it says, or refused in one line; and what only the cache cannot do stops no run."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_pipelines import make

from distill import cli, doctor, guidance, machine
from distill.conditions.cutout import cut_out, describe_rembg, read_rgba
from distill.export.report import write_report
from distill.priors import load_prior
from distill.priors.load import family_of
from distill.priors.source import find
from distill.priors.whole import check_complete
from distill.run.assembly.assemble import assemble
from distill.run.assembly.prior import check_prompt
from distill.run.config.compose import compose_config
from distill.run.folder import folders
from distill.run.several.queue import Part, read_prompts
from distill.run.signals import stop_signals
from distill.samplers import timesteps


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    make("stable_diffusion").save_pretrained(tmp_path / "prior")
    return tmp_path / "prior"


def states(folder: Path) -> torch.Tensor:
    return load_prior(folder, dtype=torch.float32).embed(["a mug"])["encoder_hidden_states"]


def test_the_cache_tells_models_by_their_content(folder: Path) -> None:
    """Another model at the same path, of the same size and time, is another; the same one elsewhere is the same."""
    first = states(folder)
    (kept,) = (folder.parent / "cache" / "text").iterdir()
    moved = folder.rename(folder.parent / "moved")
    assert torch.equal(states(moved), first) and len(list(kept.parent.iterdir())) == 1
    file = moved / "text_encoder" / "model.safetensors"
    before = file.stat()
    weights = {name: value + 0.1 for name, value in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert not torch.allclose(states(moved), first)


def test_a_cache_that_cannot_be_written_is_said_and_the_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = states(folder)
    (folder.parent / "file").write_text("")
    monkeypatch.setenv("DISTILL_CACHE", str(folder.parent / "file"))
    caplog.clear()
    assert torch.equal(states(folder), expected)
    assert "set DISTILL_CACHE to a writable folder" in caplog.text


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_a_precision_has_a_name(folder: Path, name: str) -> None:
    prior = load_prior(folder, dtype=name)
    found = {key: value.dtype for key, value in prior.network.named_parameters()}
    assert found["conv_in.weight"] == getattr(torch, name)
    assert {found[key] for key in found if not key.startswith(("conv_norm_out", "conv_out"))} == {
        getattr(torch, name)
    }
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'half'"):
        load_prior(folder, dtype="half")


@pytest.mark.parametrize("name", ["mug.png", "Mug.JPG", "a mug.webp"])
def test_a_picture_is_no_prompt(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.split_prompt([name]) == (name, [])
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        cli.main([name])
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err
        == f"distill: error: {name} is a picture; to start from it, write image={name}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a red mug"], {"prompt": "a red mug"}),
        (["--json", "a red mug, big", "seed=3"], {"prompt": "a red mug, big", "seed": 3}),
        (["prompts=list.txt"], {"prompt": "", "prompts": "list.txt"}),
        (["image=mug.png"], {"prompt": "", "image": "mug.png"}),
        (["negative_prompt=ugly, blurry"], {"prompt": "a red mug", "negative_prompt": "ugly, blurry"}),
    ],
)
def test_the_doctor_takes_what_a_run_takes(
    arguments: list[str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[DictConfig] = []

    def look(parts: Sequence[Part], as_json: bool) -> int:
        seen.extend(part.config for part in parts)
        return 0

    monkeypatch.setattr(doctor, "doctor", look)
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", *arguments])
    assert ended.value.code == 0
    assert {name: seen[0][name] for name in expected} == expected


def verdicts(*options: str) -> dict[str, tuple[str, str]]:
    return {found.name: (found.verdict, found.said) for found in doctor.inputs(compose_config(options))}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that a run cannot use, each in its own way."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "empty.txt": "# none\n", "strange.txt": "a red mug\na dragon\n", "good.txt": "a red mug\na blue table\n",
        "text.png": "no picture", "views.yaml": "front: [", "other.yaml": "top: a mug", "back.yaml": "back: behind a mug",
        "file": "", "mine/notes.txt": "mine",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.txt").write_bytes(b"a m\xfcg\n")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "model" / "unet").mkdir(parents=True)
    (tmp_path / "model" / "unet" / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\n"
    )
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste((220, 30, 30), (16, 16, 48, 48))
    picture.save(tmp_path / "mug.png")
    picture.crop((0, 0, 64, 40)).save(tmp_path / "low.png")
    Image.effect_noise((64, 64), 200).save(tmp_path / "busy.png")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        (["prompts=gone.txt"], "prompts", "cannot be read"),
        (["prompts=empty.txt"], "prompts", "has none"),
        (["prompts=latin.txt"], "prompts", "cannot be read"),
        (["prompts=strange.txt"], "prompts", "does not know 'dragon'"),
        (["prompt=a dragon"], "prompt", "does not know 'dragon'"),
        (["image=gone.png"], "image", "is not there"),
        (["image=text.png"], "image", "cannot be read"),
        (["image=busy.png"], "image", "is not plain"),
        (["image=mug.png", "reference.depth=low.png", "penalties.reference_depth=1"], "image", "must be as large as"),
        (["image=mug.png", "novel_view=gone"], "novel_view", "a folder of a novel-view model"),
        (["image=mug.png", "novel_view=model"], "novel_view", "pointer of Git LFS"),
        (["prompt=a red mug", "views.file=views.yaml"], "views.file", "cannot be read"),
        (["prompt=a red mug", "views.file=other.yaml"], "views.file", "must hold a prompt for any of"),
        (["prompt=a red mug", "init=gone"], "init", "gone has no checkpoints"),
        (["prompt=a red mug", "init=run"], "init", "checkpoints of run are empty"),
        (["prompt=a red mug", "output_dir=mine"], "output_dir", "holds something else"),
        (["prompt=a red mug", "output_dir=file"], "output_dir", "cannot write"),
        (["prompt=a red mug", "output_dir=file/inside"], "output_dir", "cannot write"),
        (["prompt=a red mug", "guidance=vsd", "guidance.lora=gone"], "guidance.lora", "is not there"),
        (["prompt=a mug", "prior=sd-1.5", "prior_options.loras=[gone.safetensors]"], "lora", "is neither"),
        (
            ["prompt=a mug", "prior=sd-1.5", "prior_options.controlnet=x", "prior_options.control=text.png"],
            "prior_options.control", "cannot be read",
        ),
    ],
)  # fmt: skip
def test_the_doctor_refuses_what_a_run_refuses(there: Path, options: list[str], name: str, said: str) -> None:
    verdict, text = verdicts(*options)[name]
    assert verdict == "wrong" and said in text and "\n" not in text
    with pytest.raises(ValueError):  # the run itself, with the part that the doctor does not look at left out
        config = compose_config(options)
        if name == "output_dir":
            folders.claim(config)
        elif config.prompts:
            for each in read_prompts(config):
                check_prompt(compose_config([f"prompt={each}"]))
        elif name == "guidance.lora" or config.prior != "embedded":
            raise ValueError
        else:
            assemble(config)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["prompts=good.txt"], {"output_dir", "prompts"}),
        (["image=mug.png"], {"output_dir", "image", "novel_view"}),
        (["prompt=a mug", "prior=sd-1.5", "views.file=back.yaml"], {"output_dir", "prompt", "views.file"}),
        (["prompt=a red mug", "output_dir=new/deep"], {"output_dir", "prompt"}),
    ],
)
def test_the_doctor_passes_what_runs_and_leaves_nothing(
    there: Path, options: list[str], names: set[str]
) -> None:
    before = sorted(there.rglob("*"))
    found = verdicts(*options)
    assert set(found) == names and {verdict for verdict, _ in found.values()} == {"ok"}
    assert sorted(there.rglob("*")) == before


def test_the_doctor_looks_at_the_tensors_names_in_loras_and_encoders(folder: Path) -> None:
    """A LoRA of another network, junk, and a text encoder that lacks a layer; the whole ones pass."""
    save_file({"unet.strange.lora_A.weight": torch.zeros(1, 4)}, folder.parent / "other.safetensors")
    (folder.parent / "junk.safetensors").write_bytes(b"x" * 99)
    source = find(folder)
    for name in ("other", "junk"):
        config = compose_config(
            ["prompt=a mug", f"prior={folder}", f"prior_options.loras=[{folder.parent}/{name}.safetensors]"]
        )
        found = {each.name: each for each in doctor.fits(config, source)}
        assert found["options"].verdict == "ok" and found["lora"].verdict == "wrong"
        assert "does not fit this prior" in found["lora"].said
    family, index = family_of(folder)
    check_complete(source, family, index)
    for part, cut in (("text_encoder", "layers.1"), ("vae", "decoder.conv_in"), ("unet", "conv_out")):
        (file,) = (folder / part).glob("*.safetensors")
        whole = load_file(file)
        save_file({key: x for key, x in whole.items() if cut not in key}, file, {"format": "pt"})
        with pytest.raises(ValueError, match=rf"{part} lacks \d+ of its weights, such as .*{cut}"):
            check_complete(source, family, index)
        save_file(whole, file, {"format": "pt"})


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_a_terminal_that_closes_asks_a_run_to_stop() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may have been started by nohup
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.wait(5)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.wait(0.1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_list_whose_reader_has_seen_enough_is_silent() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "distill", "priors"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["image=m.png", "prior=sd"], "prior=sd would do nothing: image= alone asks the picture's own model"),
        (["image=m.png", "reference.normal=n.png"], "add a weight such as penalties.reference_normal=100"),
        (["image=m.png", "reference.recentre=false", "reference.fill=0.5"], "add reference.recentre=true"),
        (["image=m.png", "reference.start=none", "reference.start_until=0.5"], "add reference.start=samples"),
        (["prompt=a red mug", "reference.elevation_deg=20"], "there is no picture; add image=FILE"),
        (["prompt=a red mug", "novel_view=zero"], "there is no picture; add image=FILE"),
        (["prompt=a red mug", "source_prompt=a mug"], "choose guidance=dds or guidance=bridge"),
        (["prompt=a red mug", "render.coarse=32"], "add render.patch="),
        (["prompt=a red mug", "perp_neg.strength=2"], "add perp_neg.enabled=true"),
        (["prompt=a red mug", "view_words=none", "views.front_deg=30"], "leave out view_words=none"),
        (["prompt=a red mug", "prior_options.control_scale=2"], "add prior_options.controlnet="),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(options: list[str], said: str) -> None:
    with pytest.raises(ValueError, match="would do nothing") as caught:
        compose_config(options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_options_at_their_defaults_and_those_of_configuration_files_may_wait_for_others() -> None:
    compose_config(["prompt=a red mug", "reference.start=none", "render.coarse=64"])
    assert compose_config(["prompt=a mug", "prior=sd-1.5", "experiment=csd"]).perp_neg.strength == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("seed: @a", "cannot be read as YAML"),
        ("seed: [", "cannot be read as YAML"),
    ],
)
def test_a_broken_configuration_file_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\n{content}\n")
    with pytest.raises(ValueError, match=said) as caught:
        compose_config(["prompt=a red mug", "+experiment=own"], [str(tmp_path)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("++views.file=???", "views.file must have a value, got ???"),
        (
            "++guidance.terms=0.02",
            "unknown option 'guidance.terms'; distill.guidance.sds.sds has scale, weighting",
        ),
        ("++timesteps.bogus=1", "unknown option 'timesteps.bogus'"),
        ("++cameras._target_=distill.loop.train", "is no cameras; choose one with cameras=NAME"),
    ],
)
def test_what_is_forced_into_the_options_is_checked_too(option: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"must have|unknown|is no") as caught:
        compose_config(["prompt=a red mug", option])
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments", [["a red mug", "--help"], ["seed=1", "-h"], ["--help", "a mug"], ["--help", "doctor"]]
)
def test_help_is_this_programs_wherever_it_is_asked_for(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0 and capsys.readouterr().out == cli.HELP


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"avif"])
def test_pictures_of_phones_are_named(tmp_path: Path, brand: bytes) -> None:
    (tmp_path / "p.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(40))
    with pytest.raises(ValueError, match=r"in HEIC or AVIF, as phones save them.*save it as PNG or JPEG"):
        read_rgba(tmp_path / "p.heic")


def test_glass_is_an_object(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A square that is 100 of 255 opaque: framed as an opaque one, and its coverage stays."""
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[16:48, 16:48] = (200, 220, 255, 100)
    Image.fromarray(rgba).save(tmp_path / "glass.png")
    found, frame = cut_out(tmp_path / "glass.png", 64, fill=0.5)
    assert (frame.left, frame.top, frame.side) == (0, 0, 64)
    assert found.mask[0, 32, 32].item() == pytest.approx(100 / 255)
    assert "nowhere more than half opaque" in caplog.text


@pytest.mark.slow
def test_a_cache_of_kernels_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = "import logging; logging.basicConfig(); import distill.renderers._warp, warp; print(warp.config.kernel_cache_dir)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "WARP_CACHE_PATH": str(tmp_path / "file" / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "set WARP_CACHE_PATH to a writable folder" in done.stderr
    assert "distill-warp-" in done.stdout and not Path(done.stdout.strip()).exists()  # removed at the end


def test_the_report_of_a_picture_is_titled_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"prompt": "", "picture": {"file": "mug.png"}}')
    assert "<title>mug.png" in write_report(tmp_path).read_text("utf-8")


def test_the_network_that_cut_out_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    (tmp_path / "u2net.onnx").write_bytes(b"abc")
    assert describe_rembg() == {
        "name": "rembg's u2net",
        "licence": "Apache-2.0",
        "file": "u2net.onnx",
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",  # of abc, FIPS 180
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("guidance=nfsd", 'nfsd needs a second prompt, and none is given; add negative_prompt="..."'),
        ("guidance=dds", 'dds needs a second prompt, and none is given; add source_prompt="..."'),
        ("guidance=bridge", 'bridge needs a second prompt, and none is given; add source_prompt="..."'),
        ("guidance=csd guidance.negative=-1 guidance.empty=0", "csd with negative coefficients needs"),
        ("guidance=mix guidance.terms=[{loss:sds},{loss:nfsd}]", "nfsd needs a second prompt"),
        ("guidance=mix guidance.terms=[{loss:csd,negative:{start:0,end:-1},empty:{start:-1,end:0}}]", "csd with negative"),
        ("guidance=csd", ""),
        ("guidance=nfsd negative_prompt=bad", ""),
        ("experiment=csd", ""),
        ("guidance=dds source_prompt='a blue mug'", ""),
        ("guidance=mix guidance.terms=[{loss:nfsd,prior:novel_view}] image=mug.png", ""),
    ],
)  # fmt: skip
def test_a_loss_without_its_second_prompt_is_refused_before_anything_is_loaded(
    options: str, said: str
) -> None:
    words = ["prompt=a red mug", *shlex.split(options)]
    if not said:
        compose_config(words)
        return
    with pytest.raises(ValueError, match="second prompt") as caught:
        compose_config(words)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_loss_that_asks_for_a_prompt_in_its_first_step_says_so_beforehand() -> None:
    """Whatever calls ``require`` is marked with ``needs_prompt``."""
    for name, loss in guidance.available().items():
        source = inspect.getsource(inspect.getmodule(loss) or loss)
        asked = re.findall(r"^\s+require\(cond, \"(\w+)\"", source, re.MULTILINE)
        assert [role for role, _ in filter(None, [guidance.needed_prompt(loss)])] == asked, name


TO_ZERO = "guidance.empty={start:-1,end:0,to_fraction:0.5}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["guidance=csd", "guidance.empty=-0.5"], r"must sum to 0, got 1 \+ 0 \+ -0.5 \+ 0 = 0.5$"),
        # The sum is 0 at both ends.
        (
            ["guidance=csd", TO_ZERO, "guidance.negative={start:0,end:-1,to_fraction:0.9}", "negative_prompt=a blue mug"],
            "= 0.444444 after 50% of the run; their schedules must begin and end together",
        ),
        # A jump: just before it, the other has moved already.
        (
            ["guidance=csd", TO_ZERO, "guidance.random={start:0,end:-1,from_fraction:0.5,to_fraction:0.5}"],
            "= 1 after 50% of the run",
        ),
        (
            ["guidance=mix", "guidance.terms=[{loss:sds},{loss:csd,positive:2}]"],
            r"guidance.terms\[1\]: csd's positive, negative, empty, random must sum to 0, got 2",
        ),
        (["timesteps.t_min=0.5", "timesteps.t_max=0.3"], "t_min <= t_max"),
        (["timesteps=dreamtime", "timesteps.centre=30"], "weights vanish between t_min and t_max"),
        (["timesteps=annealed", "timesteps.t_max=0.5", "timesteps.t_max_end=0.8"], "annealed timesteps only fall"),
        (["guidance=hifa", "guidance.weighting=bogus"], "guidance.weighting must be constant, .* got 'bogus'"),
        (["optimiser.max_bad_steps=0"], "optimiser.max_bad_steps must be an integer of at least 1"),
        (["scene=image", "scene.channels=4"], "scene.channels must be 3 in a run"),
        (["device=mps"], "device=mps has no rays"),
        (
            ["guidance=csd", "guidance.random={start:0,end:-1,from_fraction:0.2}"],
            r"got 1 \+ 0 \+ -1 \+ -1 = -1 after 100% of the run",
        ),
    ],
)  # fmt: skip
def test_what_would_fail_in_the_midst_of_a_run_is_refused_at_once(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        compose_config(["prompt=a red mug", "iterations=20", *words])
    assert "\n" not in str(caught.value)


def test_coefficients_that_move_together_are_taken() -> None:
    """CSD's own schedule: what the empty prompt loses, the negative one takes over."""
    moving = "guidance.negative={start:0,end:-1,to_fraction:0.5}"
    config = compose_config(
        ["prompt=a red mug", "negative_prompt=a blue mug", "guidance=csd", TO_ZERO, moving]
    )
    assert config.guidance.negative.end == -1


def test_a_sampler_of_ones_own_may_ask_more_of_its_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.run.checks.timesteps import check_range

    def own(prior: Any) -> Any:
        return prior.not_there

    check_range(compose_config(["prompt=a red mug"]), own)


@pytest.mark.parametrize(
    ("name", "count", "fine"), [("cuda:1", 2, True), ("cuda:2", 2, False), ("cuda", 1, True)]
)
def test_a_gpu_that_is_not_there_is_refused(
    name: str, count: int, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill.devices import pick_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if fine:
        assert str(pick_device(name)) == name
    else:
        with pytest.raises(ValueError, match=f"device={name} is not there: torch sees cuda:0 to cuda:1"):
            pick_device(name)


@pytest.mark.parametrize(
    ("arch", "card", "runs"),
    [
        # NVIDIA, CUDA C++ Programming Guide: machine code runs on later minor versions of its major one, PTX on all later cards.
        ("sm_86", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (8, 0), True),
        ("sm_90", (8, 9), False),
        ("sm_75", (7, 0), False),
        ("sm_100", (10, 3), True),
        ("sm_120", (10, 3), False),
        ("compute_120", (7, 0), False),
        ("compute_80", (12, 0), True),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (10, 0), False),
    ],
)
def test_a_gpu_is_told_from_those_that_torch_was_built_for(
    arch: str, card: tuple[int, int], runs: bool
) -> None:
    assert machine.runs_on(arch, *card) is runs


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(90, "1.5 min"), (3600, "60 min"), (7199, "120 min"), (7200, "2 h"), (25_200, "7 h"), (86_400, "24 h")],
)
def test_long_times_are_told_in_hours(seconds: float, said: str) -> None:
    assert doctor.lasting(seconds) == said


def test_a_jump_at_the_very_end_is_no_part_of_a_run() -> None:
    """Steps are at i / n, the last one before 1."""
    jump = "guidance.random={start:0,end:-1,from_step:20,to_step:20}"
    assert (
        compose_config(["prompt=a red mug", "iterations=20", "guidance=csd", jump]).guidance.random.end == -1
    )


def test_a_scene_of_ones_own_may_have_any_channels_and_need_no_warp() -> None:
    from distill.run.checks.scene import check_scene

    class Own:
        features = frozenset({"volume"})

    config = compose_config(["prompt=a red mug"])
    values: Any = OmegaConf.to_container(config)
    check_scene({**values, "device": "mps", "scene": {"channels": 4}}, Own)


@pytest.mark.parametrize("prior", ["embedded", "things"])
@pytest.mark.parametrize("name", timesteps.__all__)
def test_the_stand_in_of_a_prior_takes_the_timesteps_that_the_prior_takes(name: str, prior: str) -> None:
    from distill.run.checks.timesteps import Levels

    real = load_prior(prior)
    make = getattr(timesteps, name)
    sampler, other = make(real), make(Levels())
    assert real.num_timesteps == Levels.num_timesteps
    for progress in (0.0, 0.5, 0.999):
        drawn, stood = (each(progress, 4, torch.Generator().manual_seed(0)) for each in (sampler, other))
        assert drawn.shape == stood.shape == (4,)
