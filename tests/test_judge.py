"""The shipped judge: what it weighs, what it sees, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from distill.cameras import orbit
from distill.embedded import captions, raycast, shapes, world
from distill.embedded.judge import (
    SHIPPED,
    Judge,
    load_judge,
    r_precision,
    readable,
    save_judge,
    vocabulary,
)

COLOURS = list(world.COLOURS)


@pytest.fixture(scope="module", params=SHIPPED)
def judge(request: pytest.FixtureRequest) -> Any:
    return load_judge(folder=SHIPPED[request.param])


@pytest.fixture(scope="module")
def fresh() -> Any:
    """Two unseen siblings of each kind from four directions, each in a colour of its own, and their pairs."""
    rng = np.random.default_rng(987_654_321)
    images, pairs = [], []
    for index in range(2 * len(world.KINDS)):
        kind = world.KINDS[index % len(world.KINDS)]
        azimuth = torch.tensor(rng.uniform(-180, 180, 4), dtype=torch.float32)
        elevation = torch.tensor(rng.uniform(-5, 50, 4), dtype=torch.float32)
        parts = shapes.build(kind, lambda value: value * rng.uniform(0.94, 1.06))
        layers = raycast.render(parts, orbit(azimuth, elevation, 3.2, 40.0), 64)
        colour = COLOURS[(index + index // 16) % 8]
        picture = raycast.over(layers.rgba(world.COLOURS[colour]), 1.0)
        images.append(torch.from_numpy(picture).permute(0, 3, 1, 2))
        pairs += [(colour, kind)] * 4
    return torch.cat(images), pairs


def share_of_all(judge: Any, images: Any, pairs: Any) -> Any:
    """By the rule for both halves, among all captions that the judge reads."""
    asked, said = [(kind, colour) for colour, kind in pairs], readable(judge)
    similarity = judge.similarity(images, [captions.write(*meaning) for meaning in said])
    return captions.right(similarity, asked, said).float().mean()


def share_right(judge: Any, images: Any, pairs: Any) -> Any:
    """Of the kinds' 128 captions alone."""
    best = judge.rank(images, world.all_captions())[:, 0].tolist()
    named = [world.pair_of(world.all_captions()[index]) for index in best]
    return np.mean([name == pair for name, pair in zip(named, pairs, strict=True)])


@pytest.mark.parametrize("folder", SHIPPED.values(), ids=SHIPPED)
def test_the_shipped_files_are_small(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8 * 2**20
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "judge.safetensors"}


def test_fresh_true_renders_are_judged_right(judge: Any, fresh: Any) -> None:
    assert share_right(judge, *fresh) >= 0.95
    assert share_of_all(judge, *fresh) >= 0.95


def test_blurred_noisy_greyed_renders_are_judged_right(judge: Any, fresh: Any) -> None:
    images, pairs = fresh
    small = interpolate(images, (40, 40), mode="bilinear", antialias=True)
    soft = interpolate(small, (64, 64), mode="bilinear")
    noise = 0.04 * torch.randn(soft.shape, generator=torch.Generator().manual_seed(0))
    worn = (0.9 * soft + noise).clamp(0, 1)
    assert share_right(judge, worn, pairs) >= 0.9
    assert share_of_all(judge, worn, pairs) >= 0.85


def test_features_are_unit_vectors_and_larger_pictures_are_shrunk(judge: Any, fresh: Any) -> None:
    images = fresh[0][:8]
    text = judge.text_features(["a red mug", "a photo of an orange house, front slightly left view"])
    assert text.shape == (2, 128)
    doubled = images.repeat_interleave(2, -1).repeat_interleave(2, -2)
    small, large = judge.image_features(images), judge.image_features(doubled)
    assert all(torch.allclose(x.norm(dim=1), torch.ones(len(x)), atol=1e-5) for x in (text, small, large))
    # Its antialiased resize spreads over neighbouring pixels, hence not 1 exactly.
    assert (small * large).sum(1).min() > 0.95


def test_a_caption_without_a_view_is_compared_with_the_mirror_image_too(judge: Any, fresh: Any) -> None:
    views = [f"a red mug, {view}" for view in (*world.VIEWS, "Left view.")]
    images, said = fresh[0][:8], ["a red mug", "a photo of a blue house", *views]
    found = judge.similarity(images, said)
    with torch.no_grad():
        read = judge.text_features(said)
        one, other = judge.image_features(images), judge.image_features(images.flip(-1))
    torch.testing.assert_close(found[:, :2], (one + other) @ read[:2].T / 2)
    torch.testing.assert_close(found[:, 2:], one @ read[2:].T)
    torch.testing.assert_close(judge.similarity(images.flip(-1), said)[:, :2], found[:, :2])
    assert (found[:, 2:] - judge.similarity(images.flip(-1), said)[:, 2:]).abs().max() > 0.05


def test_a_longer_neighbour_does_not_change_a_captions_features(judge: Any) -> None:
    alone = judge.text_features(["red mug"])
    beside = judge.text_features(["red mug", "a photo of a red mug, left slightly back view"])[:1]
    assert torch.allclose(alone, beside, atol=1e-6)


def test_phrasings_of_one_pair_lie_closer_than_other_pairs(judge: Any) -> None:
    for colour, kind in (("red", "mug"), ("blue", "house"), ("yellow", "duck")):
        forms = range(len(world.TEMPLATES))
        own = judge.text_features([world.caption(colour, kind, None, form) for form in forms])
        others = [text for text in world.all_captions() if world.pair_of(text) != (colour, kind)]
        assert (own @ own.T).min() > (own @ judge.text_features(others).T).max()


def test_r_precision_is_the_share_of_pictures_that_show_the_prompt(judge: Any, fresh: Any) -> None:
    images, pairs = fresh
    first, second = images[:4], next(images[i : i + 4] for i in range(4, 128, 4) if pairs[i][1] == "house")
    colour, kind = pairs[0]
    precision = r_precision(judge, first, f"a photo of a {colour} {kind}")
    assert precision == 1.0  # a sphere from anywhere
    assert r_precision(judge, torch.cat([first, second]), f"{colour} {kind}") == 0.5
    assert r_precision(judge, second, f"{colour} {kind}") == 0.0


def test_every_caption_has_features_of_its_own(judge: Any) -> None:
    features = judge.text_features([captions.write(*meaning) for meaning in readable(judge)])
    likeness = (features @ features.T).fill_diagonal_(-1)
    assert likeness.max() < 0.99


def test_r_precision_ranks_what_it_is_given(judge: Any, fresh: Any) -> None:
    images, (colour, kind) = fresh[0][:4], fresh[1][0]
    alone = captions.meanings()[:128]
    assert r_precision(judge, images, f"{colour} {kind}", among=alone) == 1.0
    assert r_precision(judge, images, f"a {kind}") == 1.0  # no colour is asked for
    with pytest.raises(ValueError, match="no caption to rank says 'a red armchair'"):
        r_precision(judge, images, "a red armchair", among=alone)


def test_rank_orders_all_captions(judge: Any, fresh: Any) -> None:
    order = judge.rank(fresh[0][:3], world.all_captions())
    assert order.shape == (3, 128)
    assert torch.equal(order.sort(dim=1).values, torch.arange(128).expand(3, 128))


def test_unknown_words_are_named(judge: Any) -> None:
    with pytest.raises(ValueError, match="'zeppelin'") as caught:
        judge.text_features(["a red zeppelin"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="'zeppelin' is none of its names"):
        r_precision(judge, torch.ones(1, 3, 64, 64), "a red zeppelin")


def test_an_empty_caption_is_refused(judge: Any) -> None:
    with pytest.raises(ValueError, match="empty caption"):
        judge.text_features(["a red mug", ""])


def test_a_missing_judge_is_said_plainly(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="no judge in"):
        load_judge(folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", lambda data: b""),
        ("config.json", lambda data: b'{"vocabulary": 3}'),
        (
            "config.json",
            lambda data: data.replace(b'"channels"', b'"other"').replace(b'"vocabulary"', b'"words"'),
        ),
        ("config.json", lambda data: json.dumps(json.loads(data) | {"channels": [8, 8, 8]}).encode()),
        ("config.json", lambda data: json.dumps(json.loads(data) | {"depths": [1, 1]}).encode()),
        ("judge.safetensors", lambda data: data[: len(data) // 2]),
        ("judge.safetensors", lambda data: b""),
    ],
)
def test_a_judge_that_is_damaged_is_one_line(name: str, change: Any, tmp_path: Any) -> None:
    for path in SHIPPED["embedded"].iterdir():
        if path.suffix in (".json", ".safetensors"):
            shutil.copy(path, tmp_path / path.name)
    load_judge(folder=tmp_path)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(ValueError, match=r"the judge in .* cannot be read \(.*\); copy it again") as caught:
        load_judge(folder=tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        load_judge(folder=tmp_path)


def test_a_judge_survives_saving_up_to_half_precision(tmp_path: Any) -> None:
    torch.manual_seed(0)
    judge = Judge(vocabulary()).eval()
    save_judge(judge, tmp_path)
    again = load_judge(folder=tmp_path)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(judge.image_features(images), again.image_features(images), atol=5e-3)
    assert torch.allclose(judge.text_features(["red mug"]), again.text_features(["red mug"]), atol=5e-3)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_judge_reads_the_captions_of_the_names_whose_words_it_knows() -> None:
    kinds = sorted({word for text in world.all_captions() for word in captions.words(text)})
    assert readable(Judge(kinds)) == captions.meanings()[:128]
    assert readable(Judge(vocabulary())) == captions.meanings()
    more = readable(Judge([*kinds, "armchair"]))
    assert more[:128] == captions.meanings()[:128] and {name for name, _ in more[128:]} == {"armchair"}


def test_the_shipped_vocabulary_is_of_the_captions(judge: Any) -> None:
    assert judge.vocabulary == sorted(set(judge.vocabulary) & set(vocabulary()))
    assert {word for text in world.all_captions() for word in captions.words(text)} < set(judge.vocabulary)


def test_one_of_the_shipped_judges_reads_the_captions_of_things_too() -> None:
    kinds, both = (load_judge(folder=SHIPPED[name]) for name in ("embedded", "things"))
    assert readable(kinds) == captions.meanings()[:128] and readable(both) == captions.meanings()
