"""Pickled files turned into safetensors: where they go, what is refused, and that nothing is replaced."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill import convert
from distill.convert import target_of


def pickle(path: Path, value: float) -> Path:
    torch.save({"a": torch.full((2,), value)}, path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *paths: Path) -> str:
    """The line in which files are refused as invalid input, exit code 2."""
    with pytest.raises(SystemExit) as ended:
        convert.main([str(path) for path in paths])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    return said.strip()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # What the loaders of transformers and diffusers look for (their WEIGHTS_NAME with a variant and with parts).
        ("pytorch_model.bin", "model.safetensors"),
        ("pytorch_model.fp16.bin", "model.fp16.safetensors"),
        ("pytorch_model-00001-of-00002.bin", "model-00001-of-00002.safetensors"),
        ("pytorch_model.bin.index.json", "model.safetensors.index.json"),
        ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
        ("diffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.fp16.safetensors"),
        ("diffusion_pytorch_model.bin.index.json", "diffusion_pytorch_model.safetensors.index.json"),
        (
            "diffusion_pytorch_model.bin.index.fp16.json",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
        ),
        ("pytorch_model.fp16-00001-of-00002.bin", "model.fp16-00001-of-00002.safetensors"),
        ("pytorch_models.bin", "pytorch_models.safetensors"),
        ("v1-5-pruned.ckpt", "v1-5-pruned.safetensors"),
    ],
)
def test_files_are_called_as_loaders_look_for_them(name: str, expected: str, tmp_path: Path) -> None:
    assert target_of(tmp_path / name) == tmp_path / expected


def test_a_model_in_parts_is_loaded_after_it_is_converted(tmp_path: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    settings = CLIPTextConfig(
        vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
    )
    model = CLIPTextModel(settings)
    names = sorted(model.state_dict())
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, own in parts.items():
        torch.save({name: model.state_dict()[name] for name in own}, tmp_path / file)
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    model.config.save_pretrained(tmp_path)
    convert.main([str(tmp_path)])
    for path in tmp_path.glob("pytorch_model*"):
        path.unlink()
    loaded = CLIPTextModel.from_pretrained(tmp_path, use_safetensors=True)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_two_files_of_one_target_are_refused_and_neither_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickle(tmp_path / "model.bin", 1)
    pickle(tmp_path / "model.ckpt", 2)
    said = refused(capsys, tmp_path)
    assert re.search(r"model.bin and .*model.ckpt would both become .*model.safetensors", said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.ckpt"]


def test_nothing_that_is_there_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    source = pickle(tmp_path / "model.bin", 1)
    assert "model.safetensors is there already" in refused(capsys, source)
    assert not load_file(tmp_path / "model.safetensors")["a"].any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "is no index of parts"),
        ("{", "is no index of parts"),
        ('{"weight_map": {"a": 1}}', "is no index"),
    ],
)
def test_an_index_that_is_none_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    source = tmp_path / "pytorch_model.bin.index.json"
    source.write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        convert.convert(source)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_target_in_no_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pickle(tmp_path / "model.bin", 1)
    said = refused(capsys, source, tmp_path / "no" / "m.safetensors")
    assert "is in a folder that is not there" in said


def test_a_folder_is_converted_in_place_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "old.bin")
    said = refused(capsys, tmp_path, tmp_path / "new.safetensors")
    assert "a target is for one file" in said and said.endswith("new.safetensors out")
    assert [path.name for path in tmp_path.iterdir()] == ["old.bin"]
