"""How the judge is trained: what is true of a picture, the loss by hand, and how both halves are drawn."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.embedded import captions, things, world
from distill.embedded.judge import ImageTower, Judge, load_judge, save_judge

FOLDER = Path(__file__).parents[1] / "examples" / "embedded"


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("judge_pictures")


@pytest.fixture
def source(pictures: Any) -> Any:
    """Two pictures of each name, of which the first can be painted where one of its objects can be."""
    names = list(captions.articles())

    def half(listed: list[int], painted: Tensor) -> Any:
        name = torch.tensor(listed).repeat_interleave(2)
        layers = torch.full((len(name), 8, 8, 5), 255, dtype=torch.uint8)
        return pictures.Half(layers, name, name % 17, torch.rand(len(name), 3), painted)

    some = torch.tensor([(name, "red") in captions.meanings() for name in names[16:]]).repeat_interleave(2)
    some[1::2] = False
    return pictures.Source(half(list(range(16)), torch.ones(32, dtype=torch.bool)),
                           half(list(range(16, len(names))), some), 0.3)  # fmt: skip


def shown(pictures: Any, *rows: tuple[int, int, int]) -> Any:
    return pictures.Shown(*torch.tensor(rows).T)


def test_what_is_true_of_a_picture_by_hand(pictures: Any) -> None:
    seen = shown(pictures, (20, 3, 5), (20, -1, 5))  # one in a chosen colour, one in its own
    said = shown(pictures, (20, 3, 5), (20, -1, -1), (20, 4, -1), (20, -1, 6), (21, -1, -1), (20, 3, -1))
    true, open_ = pictures.truth(seen, said)
    assert true.int().tolist() == [[1, 1, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0]]
    assert open_.int().tolist() == [[0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 1]]


def test_the_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    train = importlib.import_module("train_judge")
    axes = {"first": [1.0, 0, 0], "second": [0, 1.0, 0], "third": [0, 0, 1.0]}
    judge: Any = SimpleNamespace(
        log_scale=torch.tensor(math.log(3.0)),
        image_features=lambda images: images,
        text_features=lambda texts: torch.tensor([axes[text] for text in texts]),
    )
    images = torch.eye(3)[:2]
    true, open_ = torch.eye(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
    told = math.log(math.e**3 + 1) - 3  # each caption chooses between two pictures
    wide = math.log(math.e**3 + 2) - 3  # each picture between three captions
    found = train.contrast(judge, images, ["first", "second"], ["third"], true, open_)
    assert found.item() == pytest.approx((told + wide) / 2, abs=1e-5)
    open_[0, 2] = True  # the first picture's third caption counts neither way
    found = train.contrast(judge, images, ["first", "second"], ["third"], true, open_)
    assert found.item() == pytest.approx((told + (told + wide) / 2) / 2, abs=1e-5)


def test_pictures_from_overhead_alone_are_rolled_by_any_angle(pictures: Any) -> None:
    bars = torch.zeros(64, 1, 64, 64)
    bars[:, :, 30:34, 16:48] = 1
    above = torch.arange(64) % 2 == 0
    moved = pictures.move(bars, torch.Generator().manual_seed(0), above)[:, 0]
    y, x = (
        axis.double() - 31.5 for axis in torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    )
    weight = moved.double() / moved.double().sum((1, 2), keepdim=True)
    dx, dy = (axis - (weight * axis).sum((1, 2), keepdim=True) for axis in (x, y))
    second = [(weight * pair).sum((1, 2)) for pair in (dx * dx, dy * dy, dx * dy)]
    # The direction of the principal axis of the bar's second moments.
    angle = 0.5 * torch.atan2(2 * second[2], second[0] - second[1])
    assert angle[~above].abs().max() < 0.13
    assert angle[above].abs().mean() == pytest.approx(math.pi / 4, abs=0.15)  # even over half a turn


def test_halves_and_names_with_as_many_pictures_are_drawn_evenly(pictures: Any, source: Any) -> None:
    g = torch.Generator().manual_seed(0)
    parts = [source.draw(256, g)[1] for _ in range(60)]
    name = torch.cat([part.name for part in parts])[:: pictures.TOGETHER]
    colour = torch.cat([part.colour for part in parts])[:: pictures.TOGETHER]
    kinds = name < 16
    assert kinds.float().mean().item() == pytest.approx(0.3, abs=0.025)  # 3840 groups: three standard errors
    assert len(name[kinds].unique()) == 16 and len(name[~kinds].unique()) > 0.99 * 438
    can = torch.tensor([(one, "red") in captions.meanings() for one in captions.articles()])
    assert (colour[kinds] >= 0).all() and (colour[~can[name]] == pictures.NONE).all()
    assert (colour[~kinds & can[name]] >= 0).float().mean().item() == pytest.approx(
        pictures.IN_A_COLOUR, abs=0.04
    )


def test_only_a_picture_whose_colour_can_be_chosen_is_painted(pictures: Any, source: Any) -> None:
    source.view[32::2], source.view[33::2] = 3, 4  # the second of each name cannot be
    g = torch.Generator().manual_seed(1)
    seen = source.draw(2048, g)[1]
    real, painted = seen.name >= 16, seen.colour >= 0
    # In a mirror, they are the views 13 and 12.
    assert set(seen.view[real & painted].tolist()) == {3, 13}
    assert set(seen.view[real & ~painted].tolist()) == {3, 4, 12, 13}


def test_half_of_the_pictures_are_mirrored_and_say_the_other_side(pictures: Any, source: Any) -> None:
    said = ["left view", "right view", "front slightly left view", "front slightly right view"]
    left, right, front, also = (world.VIEWS.index(view) for view in said)
    for one, other in ((left, right), (front, also)):
        assert pictures.MIRRORED[one] == other and pictures.MIRRORED[other] == one
    for same in ("front view", "back view", world.OVERHEAD):
        assert pictures.MIRRORED[world.VIEWS.index(same)] == world.VIEWS.index(same)
    source.view[:] = left
    source.layers[:] = 0
    source.layers[:, :, :4, 4] = 255  # the left half is there, and black over a brighter background
    images, seen = source.draw(2048, torch.Generator().manual_seed(0))
    mirrored = seen.view == right
    assert set(seen.view.tolist()) == {left, right}
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.04)  # standard error .011
    # What shifts, rolls and blurs leave of the halves is much darker on the side that is there.
    darker = images[..., :3].mean((1, 2, 3)) > images[..., 5:].mean((1, 2, 3))
    assert (darker == mirrored).float().mean().item() > 0.99


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_overhead_pictures_are_drawn_four_times_as_often(pictures: Any, source: Any, share: float) -> None:
    view = torch.where(torch.arange(32) % 2 == 0, world.VIEWS.index(world.OVERHEAD), 0)
    layers, name = torch.full((32, 8, 8, 5), 255, dtype=torch.uint8), torch.arange(16).repeat_interleave(2)
    kinds = pictures.Half(layers, name, view, torch.zeros(32, 3), torch.ones(32, dtype=torch.bool))
    for painted in (False, True):
        chosen = torch.full((2,), painted)
        real = pictures.Half(layers[:2], torch.tensor([20, 20]), view[:2], torch.zeros(2, 3), chosen)
        seen = pictures.Source(kinds, real, share).draw(4096, torch.Generator().manual_seed(0))[1]
        # By hand: of two pictures, one counts four times: 4 / 5. Standard error .006.
        assert (seen.view != 0).float().mean().item() == pytest.approx(0.8, abs=0.02)


def test_names_of_things_are_drawn_by_the_square_root_of_their_pictures(pictures: Any) -> None:
    def half(name: Tensor) -> Any:
        layers, no = torch.full((len(name), 8, 8, 5), 255, dtype=torch.uint8), torch.zeros(len(name)) > 0
        return pictures.Half(layers, name, torch.zeros_like(name), torch.zeros(len(name), 3), no)

    real = half(torch.tensor([20] * 9 + [30]))
    seen = pictures.Source(half(torch.arange(16)), real, 0.0).draw(4096, torch.Generator().manual_seed(0))[1]
    # By hand: 3 to 1, so 3 / 4 of 2,048 draws; standard error .01.
    assert (seen.name == 20).float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_a_pack_of_some_names_is_drawn_from_and_nothing_else_is_named(pictures: Any) -> None:
    def half(listed: list[int]) -> Any:
        name = torch.tensor(listed)
        layers = torch.full((len(name), 8, 8, 5), 255, dtype=torch.uint8)
        return pictures.Half(layers, name, name % 17, torch.rand(len(name), 3), name >= 0)

    source, g = pictures.Source(half(list(range(16))), half([20, 77]), 0.3), torch.Generator().manual_seed(3)

    seen = source.draw(1024, g)[1]

    assert set(seen.name.tolist()) == {*range(16), 20, 77}
    assert set(source.others(seen, g).name.tolist()) == {*range(16), 20, 77}


def test_captions_that_are_told_are_true_and_the_others_name_everything(pictures: Any, source: Any) -> None:
    g = torch.Generator().manual_seed(2)
    images, seen = source.draw(64, g)
    assert images.shape == (64, 3, 8, 8) and images.min() >= 0 and images.max() <= 1
    told, others = source.told(seen, g), source.others(seen, g)
    true, _ = pictures.truth(seen, told.beside(others))
    assert true[:, :64].diagonal().all()
    beside = len(captions.articles())
    assert (
        others.name[:beside].tolist() == list(range(beside)) and (others.view[:beside] == pictures.NONE).all()
    )
    assert (others.colour[:beside][others.name[:beside] < 16] >= 0).all()
    names = list(captions.articles())
    for text, name, colour in zip(others.captions(g), others.name, others.colour, strict=True):
        said = world.parse(text, names)
        assert (said.colour, said.name) == (None if colour < 0 else list(world.COLOURS)[colour], names[name])
    # The drawn pairs in another colour, then from another side: both wrong for them.
    pairs, coloured = seen.name[:: pictures.TOGETHER], seen.colour[:: pictures.TOGETHER] >= 0
    assert torch.equal(others.name[beside:], torch.cat([pairs[coloured], pairs]))
    assert not (
        others.colour[beside:][: int(coloured.sum())] == seen.colour[:: pictures.TOGETHER][coloured]
    ).any()
    assert not (others.view[-len(pairs) :] == seen.view[:: pictures.TOGETHER]).any()


def test_a_judge_begins_with_the_words_that_an_earlier_one_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    train = importlib.import_module("train_judge")
    earlier, judge = Judge(["mug", "red"]).eval(), Judge(["a", "mug", "red", "sofa"]).eval()
    own = judge.embedding.weight[4].clone()
    train.begin_with(judge, earlier)
    assert torch.equal(judge.text_features(["red mug"]), earlier.text_features(["red mug"]))
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(judge.image_features(images), earlier.image_features(images))
    assert torch.equal(judge.embedding.weight[4], own)


def test_a_deeper_judge_begins_as_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    train = importlib.import_module("train_judge")
    torch.manual_seed(0)
    earlier, images = Judge(["mug"], (8, 12, 16), (1, 1, 2)).eval(), torch.rand(2, 3, 64, 64)
    judge = Judge(["mug"], (8, 12, 16), (3, 1, 3)).eval()
    for added in (0.0, train.ADDED):
        monkeypatch.setattr(train, "ADDED", added)
        train.begin_with(judge, earlier)
        kept = [layer for at, layer in enumerate(judge.image_tower) if at not in (2, 3, 9)]
        for layer, older in zip(kept, earlier.image_tower, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(layer.parameters(), older.parameters(), strict=True))
        near = (judge.image_features(images) * earlier.image_features(images)).sum(1)
        assert (near > (0.9999 if added == 0 else 0.9)).all()
        assert added == 0 or (near < 1 - 1e-6).all()


def test_a_judge_cannot_begin_as_a_deeper_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    train = importlib.import_module("train_judge")
    options = SimpleNamespace(channels=None, depths=[2, 1, 1])
    with pytest.raises(ValueError, match="expected at least those of --start, 1 1 2, got 2 1 1"):
        train.shape_of(options, Judge(["mug"], (8, 12, 16)))
    assert train.shape_of(options, None) == ((48, 96, 192), (2, 1, 1))
    assert train.shape_of(SimpleNamespace(channels=None, depths=None), Judge(["mug"], (8, 12, 16))) == (
        (8, 12, 16),
        (1, 1, 2),
    )


def test_a_state_goes_on_only_with_the_pack_and_the_judge_that_it_began_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    train = importlib.import_module("train_judge")
    for name in ("pack", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "things.safetensors").write_text(name)
        (tmp_path / name / "judge.safetensors").write_text(name)

    def options(things: str, start: str | None) -> Any:
        folder = None if start is None else tmp_path / start
        return SimpleNamespace(
            work=tmp_path, things=tmp_path / things, start=folder, device="cpu", channels=None, depths=None
        )

    first = options("pack", "pack")
    assert train.load_state(first) is None
    train.save_state(tmp_path / "judge.pt", {"begun": train.begun_with(first), "seen": 64})
    assert train.load_state(first)["seen"] == 64
    for given, said in (
        (options("other", "pack"), "another --things"),
        (options("pack", "other"), "another --start"),
        (options("pack", None), "another --start, or without it"),
        (options("nowhere", None), "cannot be read"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            train.load_state(given)
        assert "\n" not in str(caught.value)


def test_a_pack_of_other_names_is_refused(pictures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    stranger = replace(things.table()[0], name="zeppelin")
    pack = things.Pack((stranger,), torch.zeros(1, 1, 3), torch.zeros(0), torch.zeros(3))
    monkeypatch.setattr(things, "read_pack", lambda folder: pack)
    with pytest.raises(ValueError, match="has 'zeppelin', which the table does not"):
        pictures.of_pack(Path("pack"))


@pytest.mark.parametrize(("depths", "stages"), [((1, 1, 2), [8, 8, 12, 16, 16]), ((2, 0, 1), [8, 8, 8, 16])])
def test_a_judge_of_another_shape_is_read_back(
    depths: tuple[int, int, int], stages: list[int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    judge, images = Judge(["mug", "red"], (8, 12, 16), depths).eval(), torch.rand(3, 3, 64, 64)
    save_judge(judge, tmp_path)
    again = load_judge(folder=tmp_path)
    assert again.channels == (8, 12, 16) and again.depths == depths
    found, wanted = (each.similarity(images, ["red mug"]) for each in (again, judge))
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)
    tower = ImageTower(again)
    assert tower.config.hidden_sizes == stages and tower.config.num_hidden_layers == len(stages) - 1
    assert [state.shape[-1] for state in tower(images).hidden_states] == tower.config.hidden_sizes


def test_training_for_minutes_ends_after_them_and_goes_on(
    tmp_path: Path, pictures: Any, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = importlib.import_module("train_judge")
    clock = iter(range(0, 10_000, 10))  # each look at the clock is ten seconds later
    monkeypatch.setattr(train.time, "time", lambda: float(next(clock)))
    monkeypatch.setattr(train, "begun_with", lambda options: {})
    seen = []

    def step(judge: Judge, *_: Any) -> Tensor:
        seen.append(1)
        return judge.log_scale.square()

    monkeypatch.setattr(train, "step", step)
    options = SimpleNamespace(
        minutes=1.0, images=8, batch=8, peak_lr=1e-3, save_minutes=9, work=tmp_path, output=tmp_path / "out"
    )
    judge = Judge(["mug", "red"], (8, 12, 16))
    fresh = pictures.Half(source.layers, source.name, source.view, source.paint, source.name < 16)
    train.train(judge, source, fresh, options, None)
    state = torch.load(tmp_path / "judge.pt", weights_only=True)
    # By hand: the clock is looked at once a batch at the start of it, and once for saving: 20 s a batch.
    assert state["seen"] == 8 * len(seen) == 24 and state["seconds"] >= 60
    train.train(judge, source, fresh, options, state)
    assert len(seen) == 3  # nothing is left to do


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--channels", "8", "8", "0"], "--channels must be at least 1, not 0"),
        (["--depths", "1", "-1", "1"], "--depths must be at least 0, not -1"),
        (["--channels", "8", "8", "8", "--start", "judge"], "--start has channels of its own"),
        (["--minutes", "nan"], "--minutes must be above 0, got nan"),
        (["--minutes", "0"], "--minutes must be above 0, got 0"),
    ],
)
def test_options_of_the_training_are_refused(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    train = importlib.import_module("train_judge")
    monkeypatch.setattr(
        "sys.argv", ["train_judge.py", "--work", "w", "--things", "t", "--output", "o", *words]
    )
    with pytest.raises(SystemExit) as ended:
        train.parse_options()
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_training_does_not_go_on_with_another_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    train = importlib.import_module("train_judge")
    (tmp_path / things.PICTURES).write_bytes(b"pack")
    options = SimpleNamespace(
        work=tmp_path, things=tmp_path, start=None, device="cpu", channels=None, depths=None
    )
    begun = train.begun_with(options)
    torch.save({"begun": begun}, tmp_path / train.STATE)
    for what, other in (("channels", [8, 8, 8]), ("depths", [2, 2, 2])):
        assert train.load_state(options) == {"begun": begun}
        setattr(options, what, other)
        with pytest.raises(ValueError, match=f"began with another --{what}"):
            train.load_state(options)
        setattr(options, what, None)


def test_an_averaged_judge_has_the_means_of_two_and_reads_as_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    average = importlib.import_module("average_judges")
    torch.manual_seed(0)
    first, second = (Judge(["mug", "red"], (8, 12, 16), (1, 0, 1)) for _ in range(2))
    for judge, mean in ((first, 1.0), (second, 4.0)):
        layer = next(one for one in judge.modules() if isinstance(one, torch.nn.BatchNorm2d))
        layer.get_buffer("running_mean").fill_(mean)
        save_judge(judge, tmp_path / f"{mean:g}")
    words = [str(tmp_path / name) for name in ("1", "4")]
    monkeypatch.setattr("sys.argv", ["average_judges.py", *words, "--output", str(tmp_path / "both")])
    average.main()
    made, one, other = (load_judge(folder=tmp_path / name).state_dict() for name in ("both", "1", "4"))
    assert next(value[0] for name, value in made.items() if name.endswith("running_mean")) == 2.5
    for name, value in made.items():  # stored in half precision
        torch.testing.assert_close(
            value.float(), (one[name].float() + other[name].float()) / 2, atol=2e-3, rtol=1e-3
        )
    with pytest.raises(ValueError, match="other words or another shape"):
        average.averaged(first, Judge(["mug", "blue"], (8, 12, 16), (1, 0, 1)))
    monkeypatch.setattr("sys.argv", ["average_judges.py", *words, "--output", words[1]])
    with pytest.raises(SystemExit):
        average.main()
