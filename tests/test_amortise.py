"""Generators: a library's scenes are plain ones, prompts are drawn without replacement, and runs continue where they were."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import conv, hyper, small_library
from torch import Tensor

import distill
from distill import cli
from distill.arguments import of_library
from distill.cameras import turntable
from distill.conditions import prompt_library
from distill.contracts import Condition, Draw, Step
from distill.files.checkpoint import load_checkpoint
from distill.renderers.hyper_grid import hyper_grid
from distill.renderers.nerf import HashGridScene
from distill.renderers.occupancy import encoded
from distill.renderers.prompt_library import Library, epoch
from distill.run.assembly import initial
from distill.run.config.compose import compose_config
from distill.run.several.amortise import amortise, tell_length
from distill.run.several.generator import check_generator, describe_generator, read_generator

CPU = torch.device("cpu")
#: A run of seconds.
SMALL: dict[str, Any] = {
    "iterations": 5, "render.batch": 1, "render.size": 16, "log.tensorboard": False, "log.preview_every": 0, "device": "cpu",
}  # fmt: skip
SCENE: dict[str, Any] = {
    "scene.levels": 2, "scene.log2_table_size": 8, "scene.hidden_width": 8, "scene.march_steps": 16,
    "scene.occupancy_resolution": 8,
}  # fmt: skip
LISTS = {"train": ["a red mug", "a blue duck", "a green chair"], "held_out": ["a red duck"]}


def points(count: int = 64) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1


def written(folder: Path, said: object = LISTS, name: str = "library.json") -> Path:
    path = folder / name
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    return path


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_with_a_frozen_text_a_generator_is_a_plain_scene_in_values_and_gradients(backend: str) -> None:
    made: Any = hyper_grid(
        levels=2, log2_table_size=8, hidden_width=8, text_width=8, march_steps=16, occupancy_resolution=8,
        backend=backend, embeddings=small_library(),
    )  # fmt: skip
    made.prompts.draw(0)
    embedding = made.prompts.embedding()
    plain: Any = made.scene_of(embedding)
    assert type(plain) is HashGridScene
    plain.occupancy.load_state_dict(made.plain.occupancy.state_dict())
    target = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(3))
    for scene in (made, plain):
        seen = scene.render(turntable(2), 8, 8, generator=torch.Generator().manual_seed(2))
        (seen.rgb - target).square().sum().backward()
    both = [s.render(turntable(2), 8, 8) for s in (made, plain)]
    assert torch.equal(both[0].rgb, both[1].rgb) and torch.equal(both[0].depth, both[1].depth)
    # The shared weights get what the plain scene's get, since each prompt's are theirs plus what the network adds.
    torch.testing.assert_close(made.plain.grid.grad, plain.grid.grad, rtol=0, atol=0)
    own: list[Any] = [p.grad for p in plain.mlp.parameters()]
    for shared, grad in zip(made.plain.mlp.parameters(), own, strict=True):
        torch.testing.assert_close(shared.grad, grad)
    # By the chain rule, the last layer's bias has the same gradient, and its weight the outer product with its input.
    flat = torch.cat([grad.flatten() for grad in own])
    torch.testing.assert_close(made.network.write.bias.grad, flat)
    with torch.no_grad():
        told = made.prompts.prepared(embedding)
        hidden = torch.nn.functional.silu(made.network.norm(made.network.read(told)))
    torch.testing.assert_close(made.network.write.weight.grad, torch.outer(flat, hidden))


def test_the_fused_kernel_and_plain_torch_agree_on_generated_weights() -> None:
    found = []
    for backend in ("torch", "fused"):
        made: Any = hyper_grid(
            levels=3, log2_table_size=8, hidden_width=16, march_steps=16, occupancy_resolution=8,
            backend=backend, embeddings=small_library(),
        )  # fmt: skip
        weights = made.weights_of(small_library()[1])
        density, colour = made.plain.query(points(), weights)
        (density.sum() + colour.square().sum()).backward()
        found.append([density, colour, *(p.grad for p in made.network.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5)


def test_a_convolutional_generators_grid_holds_what_its_stages_say_at_each_vertex() -> None:
    made: Any = conv()
    layout = made.plain.layout
    volumes: list[Tensor] = []
    for stage in made.network.stages:
        stage.register_forward_hook(lambda _, __, out: volumes.append(out[1]))
    added = made.network(made.prompts.prepared(small_library()[0])).grid
    assert [tuple(v.shape) for v in volumes] == [(1, 2, 4, 4, 4), (1, 2, 8, 8, 8)]
    entries = added.view(-1, 2)
    for level, volume in zip(layout.levels, volumes, strict=True):
        for x, y, z in [(0, 0, 0), (3, 0, 1), (1, 2, 3)]:
            index = level.offset + x + level.resolution * (y + level.resolution * z)
            assert torch.equal(entries[index], volume[0, :, z, y, x])


def test_an_epoch_draws_every_prompt_once_and_the_next_in_another_order() -> None:
    drawn = [draw.first for draw in epoch(50, 0.0, 7)]
    assert sorted(drawn) == list(range(50)) and drawn != sorted(drawn)
    assert drawn != [draw.first for draw in epoch(50, 0.0, 8)]
    held = Library(torch.eye(5), 8, 0.0, torch.Generator().manual_seed(0))
    counts = Counter(held.draw(number).first for number in range(15))
    assert counts == dict.fromkeys(range(5), 3)
    assert all(draw.second == draw.first and draw.amount == 0 for draw in epoch(50, 0.0, 7))


def test_draws_that_interpolate_have_their_share_and_lie_between() -> None:
    draws = epoch(4000, 0.25, 3)
    mixed = [draw for draw in draws if draw.amount]
    # Four standard deviations of a share of 4000 draws are 0.027.
    assert len(mixed) / 4000 == pytest.approx(0.25, abs=0.028)
    assert sorted(draw.first for draw in draws) == list(range(4000))
    held = Library(torch.tensor([[0.0], [8.0]]), 8, 1.0, torch.Generator().manual_seed(0))
    draw = held.draw(0)
    a, b = (8.0 * draw.first, 8.0 * draw.second)
    assert held.embedding().item() == pytest.approx(a + draw.amount * (b - a), abs=1e-5)


def test_a_sampler_goes_on_where_its_state_says() -> None:
    whole, part = (Library(torch.eye(4), 8, 0.5, torch.Generator().manual_seed(5)) for _ in range(2))
    wanted = [whole.draw(number) for number in range(11)]
    assert [part.draw(number) for number in range(6)] == wanted[:6]
    assert part.draw(3) == wanted[3], "what is done again is the same"
    part.draw(5)
    again = Library(torch.eye(4), 8, 0.5, torch.Generator().manual_seed(99))
    again.load_state_dict(part.state_dict())
    assert again.drawn() == wanted[5]
    assert [again.draw(number) for number in range(6, 11)] == wanted[6:]


def test_each_prompt_keeps_the_occupancy_of_its_own_draws() -> None:
    made: Any = hyper()
    assert made.prompts.occupied.shape == (0, 512), "nothing is kept before the first draw"
    kept: dict[int, Tensor] = {}
    for step in range(7):
        before = made.prompts.occupied.clone() if step else torch.zeros(3, 512, dtype=torch.uint8)
        made.update(Step(step, step / 7), None, torch.Generator().manual_seed(step))
        row = made.drawn().first
        others = [i for i in range(3) if i != row]
        assert torch.equal(made.prompts.occupied[others], before[others])
        assert torch.equal(made.prompts.occupied[row], encoded(made.plain.occupancy.occs))
        kept[row] = made.prompts.occupied[row]
    assert set(kept) == {0, 1, 2} and all(value.max() > 0 for value in kept.values())


def test_conditions_follow_the_draw_and_lie_between_where_it_does() -> None:
    drawn, asked = [Draw(0, 0, 0.0)], []

    def make(index: int) -> Any:
        asked.append(index)
        rows = {"text": {"states": torch.full((1, 2), float(index)), "mask": torch.tensor([[index]])}}
        return lambda cameras, step, render=None: Condition(rows, cameras, step)

    condition = prompt_library.conditioner(make, lambda: drawn[0])
    values = []
    for draw in (Draw(0, 0, 0.0), Draw(2, 2, 0.0), Draw(0, 2, 0.25), Draw(0, 2, 0.75)):
        drawn[0] = draw
        text = condition(turntable(1), Step()).text
        values.append((text["states"][0, 0].item(), int(text["mask"])))
    assert values == [(0.0, 0), (2.0, 2), (0.5, 0), (1.5, 2)]
    assert asked == [0, 2], "each prompt is embedded once"


def test_pooled_is_the_pooled_embedding_or_the_mean_of_the_tokens_that_count() -> None:
    states, mask = torch.tensor([[[1.0], [3.0], [50.0]]]), torch.tensor([[1, 1, 0]])
    assert prompt_library.pooled({"encoder_hidden_states": states}).item() == 18
    assert (
        prompt_library.pooled({"encoder_hidden_states": states, "encoder_attention_mask": mask}).item() == 2
    )
    assert prompt_library.pooled(
        {"encoder_hidden_states": states, "text_embeds": torch.ones(1, 4)}
    ).shape == (1, 4)
    with pytest.raises(ValueError, match="this prior has none: it gives prompt"):
        prompt_library.pooled({"prompt": torch.zeros(1)})


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("amortise")
    return amortise(
        written(folder), output_dir=folder / "generator", **{**SMALL, "log.preview_every": 3}, **SCENE
    )


def states(folder: Path) -> dict[str, Any]:
    saved = load_checkpoint(folder / "checkpoints")
    assert saved is not None
    return saved


@pytest.mark.slow
def test_a_generators_folder_holds_its_library_and_a_wall_that_grew(generator: Path) -> None:
    assert json.loads((generator / "library.json").read_text()) == {**LISTS, "validation": []}
    lines = [json.loads(line) for line in (generator / "metrics.jsonl").read_text().splitlines()]
    assert [line["prompts_seen"] for line in lines] == [1, 2, 3, 4, 5]
    assert {path.name for path in (generator / "previews").iterdir()} == {
        "step-000003.png",
        "step-000005.png",
    }
    from PIL import Image

    # Four prompts; the fronts of two looks, and three more sides of the last.
    with Image.open(generator / "wall.png") as wall:
        assert wall.size == (190 + 5 * 64, 20 + 4 * 64)
    assert 'alt="A row of renders for each prompt"' in (generator / "report.html").read_text()
    assert json.loads((generator / "manifest.json").read_text())["prompts"] == {
        "train": 3,
        "validation": 0,
        "held_out": 1,
    }


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_is_the_same_to_the_bit(generator: Path, tmp_path: Path) -> None:
    from distill.run import execute, journal

    whole = states(generator)

    class Stops(journal.Journal):
        def __call__(self, *args: Any) -> bool:
            super().__call__(*args)
            self.checkpoint(args[0])
            return bool(args[0].step == 2)

    options: Any = {"output_dir": tmp_path / "run", **SMALL, **SCENE}
    path = written(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "Journal", Stops)
        with pytest.raises(journal.Interrupted, match="stopped at step 2 of 5"):
            amortise(path, **options)
    assert states(tmp_path / "run")["step"] == 2
    amortise(path, **options, resume=True)
    again = states(tmp_path / "run")
    assert again["step"] == whole["step"] == 5
    assert all(torch.equal(again["scene"][name], value) for name, value in whole["scene"].items())
    assert torch.equal(again["generator"], whole["generator"])
    other = written(tmp_path, {"train": ["a red mug"]}, "other.json")
    with pytest.raises(ValueError, match="learns another library"):
        amortise(other, **options, resume=True)


@pytest.mark.slow
def test_a_made_scene_is_the_generators_own_of_that_prompt_and_can_be_refined(
    generator: Path, tmp_path: Path
) -> None:
    asset = distill.generate(
        "a red duck", generator=str(generator), output_dir=tmp_path / "duck",
        **{"export.enabled": False, "log.tensorboard": False, "device": "cpu"},
    )  # fmt: skip
    made: Any = initial.open_generator(generator, CPU)
    prior = distill.load_prior("embedded")
    (embedding,) = prompt_library.embed(prior, ["a red duck"])
    own: Any = made.scene_of(embedding)
    assert torch.equal(asset.view(turntable(2), 16, 16).rgb, own.render(turntable(2), 16, 16).rgb)
    density, albedo = made.plain.query(points(), made.weights_of(embedding))
    field = asset.scene.field()
    assert field is not None
    assert all(torch.equal(a, b) for a, b in zip(field(points()), (density, albedo), strict=True))
    saved = states(tmp_path / "duck")
    assert saved["step"] == 0 and torch.equal(saved["scene"]["grid"], own.grid)
    assert asset.manifest["iterations"] == 0
    refined = distill.generate(
        "a red duck", init=str(tmp_path / "duck"), output_dir=tmp_path / "more", guidance="csd",
        **{**SMALL, "iterations": 1, "export.enabled": False},
    )  # fmt: skip
    assert refined.manifest["skipped_steps"] == 0
    at_once = compose_config(
        ["prompt=a red duck", f"generator={generator}", "iterations=7", "scene.mlp_lr=0.5"]
    )
    assert (at_once.iterations, at_once.scene.mlp_lr, at_once.scene.encoding_lr) == (7, 0.5, 0.01)


@pytest.mark.slow
def test_between_two_prompts_is_the_scene_of_what_lies_between_their_embeddings(generator: Path) -> None:
    config = compose_config(
        ["prompt=a red mug", f"generator={generator}", "generator_mix=a blue duck", "generator_share=0.25"]
    )
    prior = distill.load_prior("embedded")
    found: Any = initial.generated(config, prior)
    a, b = prompt_library.embed(prior, ["a red mug", "a blue duck"])
    made: Any = initial.open_generator(generator, CPU)
    expected: Any = made.scene_of(0.75 * a + 0.25 * b)
    torch.testing.assert_close(found.grid, expected.grid)
    for own, other in zip(found.mlp.parameters(), expected.mlp.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_libraries_are_read_from_json_and_from_text(tmp_path: Path) -> None:
    text = "# colours\na red mug\n\n a blue duck \n"
    found = prompt_library.read_library(str(written(tmp_path, text, "prompts.txt")))
    assert (found.train, found.held_out) == (("a red mug", "a blue duck"), ())
    assert (found.where("a red mug"), found.where("a blue duck")) == ("line 2", "line 4")
    path = written(tmp_path, '{"train": ["x", "a \\"b\\""],\n "validation": ["y"],\n "held_out": ["z"]}')
    told = prompt_library.read_library(str(path))
    assert told.all() == ("x", 'a "b"', "y", "z")
    assert [told.where(text) for text in told.all()] == ["line 1", "line 1", "line 2", "line 3"]
    many = prompt_library.Prompts(tuple(map(str, range(100))), held_out=("x",))
    assert len(many.previewed()) == 9 and many.previewed()[-1] == "x"


def test_a_library_in_the_form_of_scaledreamers_is_read_and_repetitions_count_once(tmp_path: Path) -> None:
    text = '{"train": ["a", "b", "a", " b "], "val": ["b", "c"], "test": ["a", "b", "d", "d"]}'
    found = prompt_library.read_library(str(written(tmp_path, text)))
    assert (found.train, found.validation, found.held_out) == (("a", "b"), ("c",), ("d",))
    assert found.repeated == 6  # of ten
    same = prompt_library.read_library(str(written(tmp_path, '{"train": ["a", "b"], "test": ["a", "b"]}')))
    assert (same.train, same.held_out, same.repeated) == (("a", "b"), (), 2)
    lines = prompt_library.read_library(str(written(tmp_path, "a\nb\na\n", "prompts.txt")))
    assert (lines.train, lines.repeated) == (("a", "b"), 1)


def test_prompts_of_both_other_lists_are_looked_at() -> None:
    def seen(validation: int, held_out: int) -> tuple[int, int]:
        lists = (tuple(f"v{i}" for i in range(validation)), tuple(f"h{i}" for i in range(held_out)))
        found = prompt_library.Prompts(("a",), *lists).previewed()
        assert found[0] == "a" and len(found) == len(set(found))
        return sum(text[0] == "v" for text in found), sum(text[0] == "h" for text in found)

    assert [seen(9, 9), seen(9, 1), seen(1, 9), seen(9, 0), seen(0, 9), seen(2, 3)] == [
        (4, 4), (7, 1), (1, 7), (8, 0), (0, 8), (2, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("colours_first", [True, False])
def test_prompts_that_are_looked_at_are_of_many_kinds_whatever_the_order_of_the_list(
    colours_first: bool,
) -> None:
    colours, kinds = [f"c{i}" for i in range(8)], [f"k{i}" for i in range(16)]
    outer, inner = (colours, kinds) if colours_first else (kinds, colours)
    seen = prompt_library.Prompts(tuple(f"{a} {b}" for a in outer for b in inner)).previewed()
    assert len(seen) == len(set(seen)) == 8
    for column in (0, 1):
        assert len({text.split()[column] for text in seen}) >= 4
    few = prompt_library.Prompts(("a", "b", "c"))
    assert few.previewed() == ("a", "b", "c")


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (None, r"nothing\.json cannot be read: No such file"),
        ("{", "is not JSON at line 1"),
        ('["a red mug"]', "has no list train"),
        ('{"held_out": []}', "has no list train"),
        ('{"train": []}', "has nothing to train on: its list train is empty"),
        (
            '{"train": ["x"], "tests": []}',
            "has 'tests'; the lists of a library are train, validation, held_out",
        ),
        (
            '{"train": ["x"], "val": [], "validation": []}',
            "has 'val' and 'validation'; put what is in both into one",
        ),
        ('{"train": ["x", ""]}', "the list train of .* must hold prompts"),
        ('{"train": ["x"], "val": [""]}', "the list val of .* must hold prompts"),
        ('{"train": ["x"], "train": ["y"]}', "has 'train' twice; put what is in both into one"),
        ('{"train": ["x"], "held_out": [], "held_out": []}', "has 'held_out' twice"),
        ('{"train": ["a red mug",\n "a red spaceship mug cube"]}', "line 2 of .*: prior=embedded"),
    ],
)
def test_a_library_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, said: str | None, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nothing.json" if said is None else written(tmp_path, said)
    with pytest.raises(SystemExit) as left:
        cli.main(["amortise", f"prompts={path}", f"output_dir={tmp_path / 'run'}"])
    assert left.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    import re

    assert re.search(error, lines[0]), lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["scene=hyper_grid"], "learns a library of prompts; write distill amortise prompts=FILE"),
        (["iterations=0"], "at least 1, got 0; 0 is for a scene that comes from generator="),
        (["generator_mix=a blue duck"], "would do nothing: there is no generator"),
        (["generator=nowhere"], "nowhere has no generator.json; make one with distill amortise"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: list[str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        compose_config(["prompt=a red mug", *words])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["amortise"], "needs a library of prompts: add prompts=FILE"),
        (["amortise", "a red mug", "prompts=x"], "takes a library, prompts=FILE, and no prompt"),
        (["amortise", "prompts=x", "scene=hash_grid"], "needs scene=hyper_conv or scene=hyper_grid"),
        (["amortise", "prompts=x", "particles=2"], "particles=2 does not go with a library"),
        (["amortise", "prompts=x", "init=run"], "init=run does not go with a library"),
    ],
)
def test_the_command_says_what_it_needs(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    assert error in capsys.readouterr().err


def test_a_generators_training_goes_on_with_the_library_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    words = ["output_dir=there", "resume=true"]
    with pytest.raises(ValueError, match="add prompts=FILE"):
        of_library(None, words)
    written(tmp_path / "there")
    assert of_library(None, [words[0], "resume=True"]) == of_library(None, words)
    (prompts, scene) = of_library(None, words)
    assert compose_config([*words, prompts, scene]).prompts.endswith("there/library.json")
    for less in (words[:1], words[1:], ["resume=true", "output_dir=gone"]):
        with pytest.raises(ValueError, match="add prompts=FILE"):
            of_library(None, less)


def test_settings_that_cannot_be_read_are_said_in_one_line_where_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = written(tmp_path)
    (tmp_path / "there").mkdir()
    for content in ("optimiser: {", "[]", "a: b"):
        (tmp_path / "there" / "config.yaml").write_text(content)
        with pytest.raises(SystemExit) as ended:
            cli.main(["amortise", f"prompts={library}", f"output_dir={tmp_path / 'there'}", "resume=true"])
        (line,) = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and "config.yaml" in line and "choose another output_dir=" in line


def test_a_generator_is_told_of_its_priors_folder_in_full_and_goes_with_a_copy_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("here/prior", "there/prior"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "model_index.json").write_text("{}")
    (tmp_path / "made/checkpoints").mkdir(parents=True)
    trained = compose_config(["prompts=x", "scene=hyper_grid", "prior=here/prior"])
    describe_generator(tmp_path / "made", trained, {}, 64)
    said = read_generator("made")["prior"]
    assert said == str(tmp_path / "here/prior")

    def check(*words: str) -> list[str]:
        caplog.clear()
        check_generator(compose_config(["prompt=x", "generator=made", *words]))
        return caplog.messages

    assert check() == check("prior=here/prior") == check(f"prior={said}") == []
    (warned,) = check("prior=there/prior")
    assert warned.endswith("there/prior is assumed to be a copy of it")
    assert check("prior=there/prior") == []  # a queue makes many scenes, and says it once
    assert check("prior=there/../here/prior") == []
    for wrong in ("embedded", "gone/prior"):
        with pytest.raises(
            ValueError, match=f"not with {wrong}; give that folder, or a copy of it, as prior=$"
        ):
            check(f"prior={wrong}")
    shutil.rmtree("here")
    with pytest.raises(
        ValueError, match=r"here/prior, which is not there; give a copy of it as prior=FOLDER$"
    ):
        check()
    assert check("prior=there/prior") == []


def test_a_folder_that_is_called_as_a_prior_is_not_that_prior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sd-2.1-base").mkdir()
    Path("made/checkpoints").mkdir(parents=True)
    trained = compose_config(["prompts=x", "scene=hyper_grid", "prior=sd-2.1-base", "output_dir=sd-2.1-base"])
    describe_generator(Path("made"), trained, {}, 64)
    assert read_generator("made")["prior"] == "sd-2.1-base"
    check_generator(compose_config(["prompt=x", "generator=made"]))
    with pytest.raises(ValueError, match=r"with prior=sd-2\.1-base, .* not with embedded; leave out prior="):
        check_generator(compose_config(["prompt=x", "generator=made", "prior=embedded"]))


def test_few_steps_for_each_prompt_and_repetitions_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    file = written(tmp_path, {"train": ["a red mug", "a blue mug", "a green mug", "a red mug"]})

    def said(*words: str) -> list[str]:
        caplog.clear()
        config = compose_config([f"prompts={file}", "scene=hyper_grid", *words])
        tell_length(config, prompt_library.read_library(str(file)))
        return caplog.messages

    repeated = f"1 repeated prompt of {file} left out"
    assert said("iterations=27", "optimiser.accumulate=1") == [
        "3 prompts to learn, 9 steps for each", repeated,
        "9 steps for each prompt are few; iterations=300 makes them 100",
    ]  # fmt: skip
    assert said("iterations=13", "optimiser.accumulate=2")[-1].endswith("iterations=150 makes them 100")
    assert said("iterations=30", "optimiser.accumulate=1") == [
        "3 prompts to learn, 10 steps for each",
        repeated,
    ]


@pytest.mark.slow
def test_a_generator_of_another_prior_width_or_scene_is_refused(generator: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was made with prior=embedded"):
        distill.generate("x", generator=str(generator), prior="sd-2.1-base", output_dir=tmp_path / "a")
    with pytest.raises(ValueError, match=r"makes scenes with levels 2, not 5; leave out scene\.levels="):
        distill.generate(
            "a red mug", generator=str(generator), output_dir=tmp_path / "b", **{"scene.levels": 5}
        )
    with pytest.raises(ValueError, match="does not go with init=run"):
        compose_config(["prompt=a red mug", f"generator={generator}", "init=run"])
    other = tmp_path / "other"
    other.mkdir()
    said = json.loads((generator / "generator.json").read_text())
    (other / "generator.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="has no checkpoints yet"):
        distill.generate("a red mug", generator=str(other), output_dir=tmp_path / "c")
    (other / "generator.json").write_text("[]")
    with pytest.raises(ValueError, match=r"generator.json cannot be read"):
        compose_config(["prompt=a red mug", f"generator={other}"])

    class Wider:
        name, words, device = "embedded", True, CPU

        def embed(self, texts: list[str]) -> Any:
            return {"text_embeds": torch.zeros(len(texts), 999)}

    wide: Any = Wider()
    with pytest.raises(ValueError, match="is given embeddings of 128 numbers, and embedded gives 999"):
        initial.generated(compose_config(["prompt=a red mug", f"generator={generator}"]), wide)
