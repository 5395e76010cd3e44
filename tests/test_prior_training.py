"""Training of the embedded prior: what it draws, how a wider UNet starts, what it writes."""

from __future__ import annotations

import argparse
import importlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distill.embedded import things, world
from distill.priors import load_prior

FOLDER = Path(__file__).parents[1] / "examples" / "embedded"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for one another are slower than one, on small batches beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def thing(
    name: str, paint: tuple[float, float, float] | None, also: str = "", variant: int = 1
) -> things.Thing:
    return things.Thing(
        f"{name}{variant}", name, also, things.article_of(name), variant, "Test", "Ann", "CC0", "a.sh3f", "a.obj",
        (1, 0, 0, 0, 1, 0, 0, 0, 1), (1, 1, 1), 12, False, paint, 0.9 if paint else 0.0, name,
    )  # fmt: skip


def webp(plane: tuple[int, int, int, int], views: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((64, 64 * views, 4), plane, np.uint8)).save(file, "webp", lossless=True)
    return file.getvalue()


@pytest.fixture
def pack() -> things.Pack:
    """Sofas of which all can be painted, and a hamburger that is green all over; two views, from the front and above."""
    found = (
        thing("sofa", (1.0, 1.0, 1.0), "couch"),
        thing("sofa", (1.0, 0.0, 0.0), "couch", 2),
        thing("hamburger", None, "mug"),
    )
    shaded, blank, green = webp((255, 255, 255, 255), 2), webp((0, 0, 0, 255), 2), webp((0, 255, 0, 255), 2)
    parts = [blank, shaded, blank, shaded, green, b""]
    offsets = torch.tensor([0, *np.cumsum([len(part) for part in parts])])
    angles = torch.tensor([[0.0, 10.0, 3.2], [0.0, 80.0, 3.2]]).expand(3, 2, 3)
    return things.Pack(
        found, angles, torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8), offsets
    )


@pytest.fixture
def pictures(tmp_path: Path, example: Any) -> Any:
    """Pictures of the world that show nothing but shading, one of each kind."""
    dataset = example("dataset")
    kinds = len(world.KINDS)
    layers = np.zeros((kinds, 64, 64, 5), np.uint8)
    layers[..., 3:] = 255
    np.save(tmp_path / "layers.npy", layers)
    np.save(tmp_path / "rows.npy", np.array([[k, 22.5 * k, 10.0] for k in range(kinds)], np.float32))
    return dataset.Pictures(tmp_path, torch.Generator().manual_seed(0))


@pytest.fixture
def data(pictures: Any, pack: things.Pack, example: Any) -> Any:
    real = example("things_dataset").ThingPictures(pack, pictures.generator)
    side = example("text_side")
    return example("train_prior").Data(pictures, real, side.Tokens(side.make_tokenizer(real)))


def test_pictures_of_things_have_the_colours_that_their_captions_say(data: Any) -> None:
    batch = data.things.draw(400)
    told = {}
    for image, text in zip(batch.images, data.things.captions(batch), strict=True):
        words = text.replace(",", " ").split()
        colours = [word for word in words if word in world.COLOURS]
        mean = (image.mean((1, 2)) + 1) / 2
        assert "mug" not in words  # the hamburger's other name is a kind of the world
        if "hamburger" in words:
            assert not colours and torch.allclose(mean, torch.tensor([0.0, 1.0, 0.0]), atol=1e-3)
            continue
        assert ("sofa" in words) != ("couch" in words)
        # An own colour is white or red, each give or take the noise of a colour.
        wanted = [world.COLOURS[c] for c in colours] or [(1.0, 1.0, 1.0), (1.0, 0.0, 0.0)]
        assert min((mean - torch.tensor(rgb)).abs().max() for rgb in wanted) < 0.1, text
        told[colours[0] if colours else "none"] = True
    free = {c for c in world.COLOURS if not things.held_out(c, "sofa")}
    assert set(told) == free | {"none"} and len(free) == len(world.COLOURS) - 1


def test_a_tenth_of_all_captions_is_empty_and_a_fifth_of_the_pictures_is_the_worlds(data: Any) -> None:
    images, captions = data.draw(4000)
    assert images.shape == (4000, 3, 64, 64)
    filled = [text for text in captions if text]
    assert len(filled) / 4000 == pytest.approx(0.9, abs=0.02)
    kinds = [text for text in filled if any(word in world.KINDS for word in text.replace(",", " ").split())]
    assert len(kinds) / len(filled) == pytest.approx(0.2, abs=0.03)
    plain = [
        text for text in kinds if not any(word in world.COLOURS for word in text.replace(",", " ").split())
    ]
    assert len(plain) / len(kinds) == pytest.approx(0.08, abs=0.04)


def test_every_word_of_a_caption_is_one_token(data: Any) -> None:
    for text in [text for text in data.draw(200)[1] if text]:
        count = len(text.replace(",", " ,").split())
        ids = data.tokens.tokenizer(text).input_ids
        assert len(ids) == count + 2, text


def test_each_caption_is_taken_apart_once(data: Any, example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    side = example("text_side")
    plain, asked = side.tokens, []

    def counted(tokenizer: Any, captions: list[str]) -> torch.Tensor:
        asked.extend(captions)
        return plain(tokenizer, captions)

    monkeypatch.setattr(side, "tokens", counted)
    first, again = (data.draw(50)[1] for _ in range(2))
    for texts in (first, [*first[:3], *again, *first[:3]]):
        assert torch.equal(data.tokens(texts), plain(data.tokens.tokenizer, texts))
    assert sorted(asked) == sorted({*first, *again})


def test_timesteps_begin_and_end_where_they_are_told_to(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = example("prior_training")
    run = SimpleNamespace(seen=0, seconds=0.0, loss=0.0, optimiser=SimpleNamespace(param_groups=[{}]))
    options = SimpleNamespace(
        images=20, minutes=None, batch=2, peak_lr=1e-3, save_minutes=9, work=tmp_path, output=tmp_path,
        first_exponent=0.42, last_exponent=0.7,
    )  # fmt: skip
    told = []

    def update(exponent: float) -> None:
        told.append(exponent)
        run.seen += 2

    training.train(run, options, update, lambda: None)
    # By hand: from 0.42 by 0.04 a tenth of the training, to 0.7 at seven tenths.
    assert told == pytest.approx([0.42, 0.46, 0.5, 0.54, 0.58, 0.62, 0.66, 0.7, 0.7, 0.7])
    assert training.timestep_exponent(0.0) == 0.12


@pytest.mark.parametrize(
    ("name", "value"), [("first", "0"), ("first", "nan"), ("last", "inf"), ("last", "-1")]
)
def test_exponents_that_are_none_are_refused(
    example: Any, name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        example("train_prior").parse_options(["--work", "w", f"--{name}-exponent={value}"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"--{name}-exponent must be a finite number above 0, got {value}" in said


def test_the_folder_says_what_a_prior_knows(data: Any, example: Any) -> None:
    known = example("things_dataset").known(data.things.pack)
    assert known == [("hamburger", "a", False, ""), ("sofa", "a", True, "couch")]


def test_a_grown_unet_predicts_what_the_narrower_one_does(example: Any) -> None:
    train = example("train_prior")
    torch.manual_seed(0)
    old, new = train.make_unet(), train.make_unet(True)
    begun = old.state_dict()
    begun["conv_in.weight"] = torch.nn.functional.pad(begun["conv_in.weight"], (0, 0, 0, 0, 0, train.DRAFT))
    state = example("grown").grown(
        begun, new.state_dict(), narrow=144, wide=256, others=(112, 128), groups=16, heads=4
    )
    new.load_state_dict(state)
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 48, 16, 16, generator=g), torch.randn(1, 20, 128, generator=g)
    text -= text.mean(-1, keepdim=True)
    wider = torch.cat([text, torch.zeros(1, 20, 64)], dim=-1)
    with torch.no_grad():
        before = old(x, 500, text).sample
        # What begins as a prior without a draft does not see one at first.
        x = torch.cat([x, torch.randn(1, train.DRAFT, 16, 16, generator=g)], dim=1)
        after = new(x, 500, wider).sample
        other = new(x, 500, wider + torch.cat([torch.zeros(128), torch.ones(64)])).sample
        told, read = old.add_embedding(text), new.add_embedding(wider)
    # Norms over concatenated levels mix old and copied channels in other shares; all else is exact.
    assert (after - before).norm() < 0.1 * before.norm()
    torch.testing.assert_close(read, told, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(after, other, rtol=1e-3)  # the new features of the text are read


def test_copies_share_what_an_old_channel_gave_unevenly(example: Any) -> None:
    grown = example("grown")
    level = grown._Widening(16, 32, (8,), 4, torch.Generator().manual_seed(0))
    old = torch.randn(5, 24)
    wide = level.inputs(old)
    assert wide.shape == (5, 40)
    back = torch.zeros(5, 24).index_add_(1, level.index(24), wide)
    torch.testing.assert_close(back, old)
    torch.testing.assert_close(wide[:, 32:], old[:, 16:])
    assert (wide[:, 0] != wide[:, 4]).all() and level.copies[0] == level.copies[4]


@pytest.mark.slow
def test_training_goes_on_bit_for_bit_and_its_folder_loads(
    tmp_path: Path, data: Any, example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = example("train_prior")
    monkeypatch.setattr(train, "TEXT_STEPS", {False: 2, True: 2})
    torch.manual_seed(0)
    options = argparse.Namespace(device="cpu", work=tmp_path, start=None, text_side=None, text_updates=None)
    abar = train.make_scheduler().alphas_cumprod
    run = train.start(options, data)
    draft = example("text_side").fit_draft(run.encoder, data.tokens.tokenizer, data.world, data.things)
    model = train.with_draft(run.unet, draft)
    train.train_step(run, model, data, abar, 2, 0.5)
    run.save(tmp_path / "prior.pt", data.tokens.tokenizer.get_vocab())
    train.train_step(run, model, data, abar, 2, 0.5)
    again = train.start(options, data)
    assert again.seen == 2
    train.train_step(again, train.with_draft(again.unet, draft), data, abar, 2, 0.5)
    for name, value in run.averaged().items():
        assert torch.equal(value, again.averaged()[name]), name

    train.write_folder(tmp_path / "prior", run.averaged(), run.encoder, data, draft)
    size = sum(path.stat().st_size for path in (tmp_path / "prior").rglob("*") if path.is_file())
    assert size < 32e6
    names = json.loads((tmp_path / "prior" / "names.json").read_text())
    assert [row[0] for row in names["things"]] == ["hamburger", "sofa"]
    prior = load_prior(tmp_path / "prior")
    assert prior.shape == (48, 16, 16)
    x, t, said = torch.zeros(1, *prior.shape), torch.tensor([500]), prior.embed(["a red sofa"])
    run.unet.load_state_dict(run.averaged())
    with torch.no_grad():
        wanted = run.unet(draft.beside(x, said["encoder_hidden_states"]), t, **said).sample
        torch.testing.assert_close(prior.predict(x, t, said), wanted, atol=2e-2, rtol=2e-2)
    with pytest.raises(ValueError, match="add or leave out --things"):
        train.started(train.make_unet(), tmp_path / "prior", data)
    taken = train.aligned(tmp_path / "prior", data).state_dict()
    for name, value in run.encoder.state_dict().items():
        torch.testing.assert_close(taken[name], value, atol=1e-3, rtol=1e-3)
    other = replace(data, tokens=train.Tokens(example("text_side").make_tokenizer()))
    with pytest.raises(ValueError, match="trained on other names"):
        train.aligned(tmp_path / "prior", other)
    with pytest.raises(ValueError, match="training on other names"):
        again.load(tmp_path / "prior.pt", torch.device("cpu"), other.tokens.tokenizer.get_vocab())
    # From the folder, and from one of the world alone with that text side.
    same = train.make_unet(True)
    encoder = train.started(same, tmp_path / "prior", data)
    for name, value in run.averaged().items():
        torch.testing.assert_close(same.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert torch.equal(encoder.state_dict()[name_of(encoder)], taken[name_of(encoder)])
    text = train.started(train.make_unet(True), train.SHIPPED, data, tmp_path / "prior").state_dict()
    assert torch.equal(text[name_of(encoder)], taken[name_of(encoder)])


def test_captions_that_the_teacher_knows_are_learnt_from_it(example: Any) -> None:
    train, teacher = example("train_prior"), load_prior("embedded")
    g = torch.Generator().manual_seed(0)
    captions = ["a red mug, front view", "", "a mug, front view", "a red sofa", "a blue duck"]
    noisy, v = torch.randn(2, 5, *teacher.shape, generator=g)
    t = torch.tensor([900, 800, 700, 600, 500])
    wanted = train.taught(teacher, captions, noisy, t, v)
    assert torch.equal(wanted[1:4], v[1:4])
    for row in (0, 4):
        at, noise = t[row : row + 1], noisy[row : row + 1]
        alpha, sigma = teacher.alpha(at), teacher.sigma(at)
        said = teacher.predict_noise(noise, at, teacher.embed([captions[row]]))
        # v = alpha noise - sigma x, where x = (noisy - sigma noise) / alpha.
        torch.testing.assert_close(
            wanted[row : row + 1], (said - sigma * noise) / alpha, atol=1e-3, rtol=1e-3
        )
    assert torch.equal(train.taught(teacher, captions[1:4], noisy[1:4], t[1:4], v[1:4]), v[1:4])


def test_a_target_takes_the_place_of_the_pictures_own_v(example: Any) -> None:
    training = example("prior_training")
    net = torch.nn.Conv2d(48, 48, 1)
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    run = training.Run.begin(net, torch.nn.Identity(), torch.Generator().manual_seed(0), torch.device("cpu"))

    def model(noisy: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=net(noisy))

    def three(noisy: torch.Tensor, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        assert noisy.shape == v.shape == (2, 48, 16, 16) and t.shape == (2,)
        return torch.full_like(v, 3.0)

    abar = training.make_scheduler().alphas_cumprod
    training.learn(run, model, torch.zeros(2, 3, 64, 64), torch.zeros(2, 1), abar, 0.5, target=three)
    assert run.loss == 9.0
    assert net(torch.zeros(1, 48, 1, 1)).min() > 0


def total(n: int) -> float:
    return float((torch.ones(n, n) / 4 + 1).sum())


def test_processes_that_render_can_compute_whatever_their_parent_has_computed(example: Any) -> None:
    torch.set_num_threads(2)
    total(3000)
    with example("dataset").workers() as pool:
        assert pool.map_async(total, [2000, 2000]).get(timeout=60) == [5e6, 5e6]


def test_updates_that_are_recorded_learn_from_each_new_batch(example: Any) -> None:
    training = example("prior_training")
    g = torch.Generator().manual_seed(0)
    net, abar = torch.nn.Conv2d(48, 48, 1), training.make_scheduler().alphas_cumprod
    recorded = []

    def gradients() -> list[torch.Tensor]:
        return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]

    def record(compute: Any) -> Any:
        """Stands for a CUDA graph, which writes where the tensors of its recording lie."""
        loss = compute()
        recorded.append(compute)
        kept = gradients()

        def replay() -> None:
            loss.copy_(compute())
            for old, new in zip(kept, gradients(), strict=True):
                old.copy_(new)

        return replay, loss

    def model(noisy: torch.Tensor, t: torch.Tensor, cond: torch.Tensor, told: Any = 0.0) -> SimpleNamespace:
        return SimpleNamespace(sample=net(noisy) * cond.mean() + told)

    def lesson(**told: torch.Tensor) -> Any:
        x, noise = torch.randn(2, 2, 48, 16, 16, generator=g)
        t = torch.randint(1000, (2,), generator=g)
        return training.Lesson(x, noise, t, torch.randn(2, 20, 8, generator=g), told)

    # Two graphs of one network, as training by turns on single pictures and on rings of views makes them.
    graphs = [training.Recorded(record), training.Recorded(record)]
    for turn in (0, 1, 0, 0, 1):
        one = lesson(**{"told": torch.randn(1, generator=g)} if turn else {})
        loss = graphs[turn](net, model, one, abar).clone()
        found = [each.clone() for each in gradients()]
        assert torch.equal(loss, training.gradient(net, model, one, abar)) and loss > 0
        assert all(torch.equal(one, other) for one, other in zip(found, gradients(), strict=True))
    assert len(recorded) == 2


def test_a_draft_is_the_least_squares_of_mean_pictures(example: Any, data: Any) -> None:
    side = example("text_side")
    encoder = side.make_text_encoder(data.tokens.tokenizer).eval()
    draft = side.fit_draft(encoder, data.tokens.tokenizer, data.world, data.things)
    lines, wanted = side.mean_pictures(data.world, data.things)
    assert len(lines) == len(set(lines)) == (2 * len(world.KINDS) + 2) * len(world.VIEWS)
    assert wanted.mean().abs() < 1e-5 and abs(wanted.std() - 1) < 1e-5
    # All that is painted and opaque: the fourth and the fifth layer are 1, and no colour is the sofa's own.
    sofa, burger = (
        wanted[lines.index(f"a {name}, front view")].view(5, 256) for name in ("sofa", "hamburger")
    )
    assert (sofa.amin(1) == sofa.amax(1)).all() and sofa[3, 0] == sofa[4, 0] > sofa[0, 0] == sofa[
        1, 0
    ] == sofa[2, 0]
    assert burger[1, 0] == burger[4, 0] == sofa[3, 0] and burger[3, 0] == sofa[0, 0]
    with torch.no_grad():
        features = encoder(side.tokens(data.tokens.tokenizer, lines)).last_hidden_state
        made = draft(features).flatten(1)
    known = np.concatenate([features[:, -1].numpy(), np.ones((len(lines), 1))], axis=1)
    # The penalty of 0.1 on each weight, as rows of their own.
    more = np.concatenate([known, 0.1**0.5 * np.eye(known.shape[1])])
    zeros = np.zeros((known.shape[1], wanted.shape[1]))
    best = known @ np.linalg.lstsq(more, np.concatenate([wanted.numpy(), zeros]), rcond=None)[0]
    np.testing.assert_allclose(made.numpy(), best, atol=0.02)


@pytest.mark.slow
def test_a_prior_that_is_trained_further_keeps_its_draft(tmp_path: Path, example: Any, data: Any) -> None:
    """Its UNet has learnt from that draft, so that a new fit, to another pack, would change what it is shown."""
    train, side = example("train_prior"), example("text_side")
    encoder = side.make_text_encoder(data.tokens.tokenizer).eval()
    fitted = side.fit_draft(encoder, data.tokens.tokenizer, data.world, data.things)
    kept = train.Draft(fitted.layer.in_features, fitted.channels, fitted.size)
    kept.write(tmp_path / "draft")
    for folder, wanted in ((tmp_path, kept), (None, fitted), (train.SHIPPED, fitted)):
        found = train.draft_for(folder, encoder, data)
        assert not found.training and not any(value.requires_grad for value in found.parameters())
        torch.testing.assert_close(found.layer.weight, wanted.layer.weight, atol=1e-4, rtol=1e-3)
    assert train.draft_for(train.SHIPPED, encoder, replace(data, things=None)) is None


def name_of(encoder: Any) -> str:
    return next(iter(encoder.state_dict()))


def test_a_prior_of_the_world_goes_on_with_its_own_words(example: Any, pictures: Any) -> None:
    train = example("train_prior")
    data = train.Data(pictures, None, train.Tokens(train.tokenizer_for(train.SHIPPED, None)))
    unet = train.make_unet()
    encoder = train.started(unet, train.SHIPPED, data)
    prior = load_prior("embedded")
    said = ["a red mug, front view", "a blue car"]
    ids = example("text_side").tokens(data.tokens.tokenizer, said)
    torch.testing.assert_close(
        encoder(ids).last_hidden_state, prior.embed(said)["encoder_hidden_states"], atol=2e-2, rtol=2e-2
    )


def test_options_that_do_not_go_together_are_refused(
    example: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    parse = example("train_prior").parse_options
    assert parse(["--work", "w"]).output == example("train_prior").SHIPPED
    given = parse(["--work", "~/w", "--things", "p", "--start", "s", "--output", "o", "--text-side", "t"])
    assert (given.text_side, given.work) == (Path("t"), Path("~/w").expanduser())
    for words in (
        ["--things", "p"],
        ["--text-side", "t"],
        ["--things", "p", "--output", "o", "--text-side", "t"],
    ):
        with pytest.raises(SystemExit, match="2"):
            parse(["--work", "w", *words])
    assert "--things needs --output" in capsys.readouterr().err
