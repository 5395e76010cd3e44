"""Several seeds of a prompt: which is kept, what is resumed and retried, what the judges measure, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_pipelines import clip_tokenizer

from distill.cameras import Cameras
from distill.contracts import Render
from distill.embedded.judge import load_judge
from distill.embedded.vocabulary import SHIPPED as PRIORS
from distill.embedded.vocabulary import known
from distill.run.config.compose import compose_config
from distill.run.folder.failures import NoSeedFinished, noted
from distill.run.folder.folders import claim
from distill.run.folder.manifest import finish
from distill.run.folder.stored import same_run
from distill.run.several import seeds
from distill.run.several.judge import caption_of, check_judge, clip, judge_of, scored
from distill.run.several.seeds import run_seeds
from distill.run.watchdog import Collapsed


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(seeds, "begin", lambda config, prior: SimpleNamespace(prior=prior or "loaded once"))


class Carrying:
    """Stands for training: writes the options of each seed, and remembers which seeds it made."""

    def __init__(self, scores: dict[int, float | Exception]) -> None:
        self.scores, self.made, self.priors = scores, list[int](), list[object]()

    def __call__(self, config: Any, folder: Path, job: Any, started: float, desk: Any = None) -> Any:
        self.made.append(config.seed)
        self.priors.append(job.prior)
        assert (config.seeds, config.keep, config.retries, config.output_dir) == (1, "all", 0, str(folder))
        score = self.scores[config.seed]
        if isinstance(score, Exception):
            raise score
        (folder / "mesh.glb").write_text(f"mesh {config.seed}")
        (folder / "checkpoints/step-1").mkdir(parents=True)
        (folder / "checkpoints/step-1/state.json").write_text(f"state {config.seed}")
        given = {"judge": config.judge, "score": score} if config.judge else {}
        finish(folder, {"prompt": config.prompt, "seed": config.seed, "seconds": {"train": 2.0}, **given})
        return f"asset {config.seed}"


def make(carry: Carrying, *words: str) -> tuple[Path, Any]:
    config = compose_config(["prompt=a red mug", "output_dir=run", "resume=true", *words])
    return Path("run"), run_seeds(config, claim(config), None, carry)


def test_the_best_seed_is_the_run_s_own_and_all_are_listed() -> None:
    carry = Carrying({3: 0.1, 4: 0.5, 5: 0.5})
    folder, best = make(carry, "seeds=3", "seed=3", "keep=best")
    assert (best.row["folder"], best.asset, carry.made) == (
        "seed-4",
        "asset 4",
        [3, 4, 5],
    )  # the first of equals
    assert carry.priors == ["loaded once"] * 3
    assert (folder / "mesh.glb").read_text() == "mesh 4"
    assert (folder / "checkpoints/step-1/state.json").read_text() == "state 4"
    said = noted(folder)
    assert (said["chosen"], said["seed"], said["score"], said["seconds"]) == (
        "seed-4",
        4,
        0.5,
        {"train": 6.0},
    )
    assert [(row["seed"], row["score"], row["state"]) for row in said["seeds"]] == [
        (3, 0.1, "finished"), (4, 0.5, "finished"), (5, 0.5, "finished"),
    ]  # fmt: skip
    assert {"mesh.glb", "config.yaml"} <= set(said["files"])
    page = (folder / "report.html").read_text()
    assert (
        all(f'href="seed-{seed}/report.html"' in page for seed in (3, 4, 5))
        and "score 0.5, 2.0 s, the run&#39;s own" in page
    )
    assert same_run(folder, compose_config(["prompt=a red mug", "seeds=3", "seed=3", "keep=best"]))
    assert all((folder / f"seed-{seed}/mesh.glb").read_text() == f"mesh {seed}" for seed in (3, 4, 5))


def test_finished_seeds_are_not_made_again() -> None:
    class Killed(BaseException):
        pass

    def killed(config: Any, *given: Any) -> Any:
        if config.seed == 1:
            raise Killed
        return carry(config, *given)

    carry = Carrying({0: 0.9, 1: 0.2})
    with pytest.raises(Killed):
        make(killed, "seeds=2", "keep=best")  # type: ignore[arg-type]
    folder, best = make(carry, "seeds=2", "keep=best")
    assert carry.made == [0, 1]
    assert (best.row["folder"], best.asset) == ("seed-0", None)  # of the earlier process
    assert (folder / "mesh.glb").read_text() == "mesh 0"


def test_keep_all_has_no_file_of_one_seed_at_the_top() -> None:
    folder, best = make(Carrying({0: 0.1, 1: 0.2}), "seeds=2")
    assert best.row["folder"] == "seed-0" and not (folder / "mesh.glb").exists()
    said = noted(folder)
    assert (
        "chosen" not in said
        and "score" not in said
        and [row["score"] for row in said["seeds"]] == [None, None]
    )


def test_a_retry_takes_the_place_of_a_seed_that_failed() -> None:
    carry = Carrying({0: Collapsed("collapsed at step 9"), 1: 0.1, 2: 0.2})
    folder, best = make(carry, "retries=2")
    assert carry.made == [0, 1] and best.row["folder"] == "seed-1"  # the third is not needed
    assert (folder / "mesh.glb").read_text() == "mesh 1"
    said = noted(folder)
    assert [row["state"] for row in said["seeds"]] == ["collapsed", "finished"]
    assert said["seeds"][0]["why"] == "collapsed at step 9" and said["seed"] == 1
    assert "collapsed: collapsed at step 9" in (folder / "report.html").read_text()


def test_without_a_finished_seed_the_run_fails_and_says_why_each_did() -> None:
    carry = Carrying({0: Collapsed("empty"), 1: Collapsed("full")})
    with pytest.raises(NoSeedFinished, match=r"^seed-0: empty; seed-1: full$"):
        make(carry, "retries=1")
    said = noted(Path("run"))
    assert (said["state"], said["why"]) == ("failed", "seed-0: empty; seed-1: full")
    assert not Path("run/report.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prompt=a red mug", "keep=best"], "keep=best would do nothing: add seeds=4"),
        (["image=mug.png", "seeds=2", "keep=best"], "there is none; add a prompt"),
        (["prompt=a red mug", "seeds=2", "keep=best", "particles=2"], "leave out particles=, or keep=best"),
        (["prompt=a red mug", "seeds=0"], "seeds must be an integer of at least 1, got 0"),
        (["prompt=a red mug", "retries=-1"], "retries must be an integer of at least 0, got -1"),
        (["prompt=a red mug", "seeds=2", "keep=worst"], "keep must be all or best, got 'worst'"),
        (["prompt=a red mug", f"seed={2**64 - 1}", "seeds=2"], "start at a smaller seed="),
    ],
)
def test_what_does_not_go_together_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(ValueError) as error:
        compose_config(words)
    assert said in str(error.value) and "\n" not in str(error.value)


def view(pictures: torch.Tensor) -> Any:
    """Takes the i-th of these pictures from the i-th camera of a turntable, whose azimuths are 0, 45, ..."""

    def take(cameras: Cameras, height: int, width: int) -> Render:
        rgb = pictures[(cameras.azimuth_deg / 45).round().long() % 8].movedim(1, -1)
        return Render(rgb, torch.ones_like(rgb[..., :1]), torch.ones_like(rgb[..., :1]))

    return take


@pytest.mark.weights
def test_the_embedded_judge_s_score_is_the_mean_cosine_with_the_plainest_caption() -> None:
    pictures = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    judge = load_judge()
    with torch.no_grad():
        seen = judge.image_features(pictures) + judge.image_features(pictures.flip(-1))
        expected = (seen @ judge.text_features(["a red mug"])[0]).mean().item() / 2
    config = compose_config(["prompt=a photo of a red mug", "seeds=2", "keep=best"])
    found = scored(config, view(pictures))
    assert found["judge"] == "embedded" and found["score"] == pytest.approx(expected, abs=1e-4)
    assert scored(compose_config(["prompt=a red mug"]), view(pictures)) == {}


@pytest.fixture(scope="module")
def folder_of_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **small,
        "vocab_size": 56,
        "max_position_embeddings": 12,
        "bos_token_id": 54,
        "eos_token_id": 55,
        "pad_token_id": 55,
    }
    seen = {**small, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=seen, projection_dim=8)).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    CLIPImageProcessor(crop_size=32, size=32).save_pretrained(folder)
    return folder


def test_clip_measures_what_its_own_logits_say(folder_of_clip: Path) -> None:
    """Its logits are cosines times the learnt scale; the processor of transformers gives it the same pictures."""
    from transformers import CLIPImageProcessor, CLIPModel

    pictures = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    texts = ["a mug", "a red cat"]
    model = CLIPModel.from_pretrained(folder_of_clip).eval()
    tokens = clip_tokenizer()(texts, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(folder_of_clip)(list(pictures.byte()), return_tensors="pt")[
        "pixel_values"
    ]
    with torch.no_grad():
        said = model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels
        )
        expected = said.logits_per_image / model.logit_scale.exp()
    found = clip(folder_of_clip, torch.device("cpu"))(pictures / 255, texts)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_judge_that_is_not_there_or_does_not_know_is_refused_before_anything_is_loaded(
    tmp_path: Path, folder_of_clip: Path
) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(ValueError) as error:
            check_judge(compose_config([*words]))
        assert "\n" not in str(error.value)
        return str(error.value)

    best = ["seeds=2", "keep=best"]
    assert "add judge=FOLDER" in refused("prompt=a cat", f"prior={tmp_path}", *best)
    assert "(config.json with model_type clip), got gone" in refused("prompt=a red mug", "judge=gone", *best)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/config.json").write_text(json.dumps({"model_type": "clip"}))
    assert "has no model.safetensors" in refused("prompt=a red mug", f"judge={tmp_path / 'clip'}", *best)
    check_judge(compose_config(["prompt=a red mug", f"judge={folder_of_clip}", *best]))
    check_judge(compose_config(["prompt=a red mug", *best]))
    things = ["prompt=a hamburger", "prior=things", *best]
    check_judge(compose_config(things))
    assert [judge_of(compose_config(words)) for words in (["prompt=a red mug", *best], things)] == [
        "embedded", "things",
    ]  # fmt: skip
    for other, name in known(PRIORS["things"]).first.items():
        config = compose_config([f"prompt={other}", "prior=things", *best])
        check_judge(config)  # the judge knows the first of a thing's two names
        assert caption_of(config).endswith(name)
    assert "judge=embedded does not know 'hamburger'" in refused(*things, "judge=embedded")


@pytest.mark.parametrize(
    "content", [b"prompt: [", b"prompt: x\nseed: ${", b"prompt: \xff", b"- prompt", b"3", b""]
)
def test_settings_that_cannot_be_read_are_told_in_one_line(content: bytes, tmp_path: Path) -> None:
    """Broken YAML, a broken interpolation, another encoding, and what is no mapping."""
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"config\.yaml .*; remove .* or choose another output_dir="
    ) as refused:
        same_run(tmp_path, compose_config(["prompt=x"]))
    assert "\n" not in str(refused.value)
