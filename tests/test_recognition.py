"""The azimuth of a picture through a prior that is told directions: by hand, in a run, and with options that do not go with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_run import QUICK, command
from torch import Tensor

from distill.cameras import Cameras, turntable
from distill.conditions.picture import framed, is_asked
from distill.conditions.prompts import conditioner, view_words
from distill.conditions.recognition import (
    DIRECTIONS,
    DRAWS,
    LEVELS,
    better_wording,
    compare_wordings,
    estimate_azimuth,
    in_front,
    shown_colours,
)
from distill.contracts import Condition, Conditioner, Prior, Step
from distill.embedded.prompt import in_colours
from distill.embedded.vocabulary import of_prior
from distill.embedded.world import COLOURS
from distill.renderers.nerf import HashGridScene
from distill.run.assembly import conditioning
from distill.run.assembly.assemble import assemble, make_scenes
from distill.run.config.compose import compose_config

SIZE = 4
#: What an object looks like from each side, ``[16, 3, 4, 4]``.
SIDES = torch.rand(DIRECTIONS, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@dataclass
class Told:
    """A prior that knows one picture for each direction, so that its noise is known: (x_t - alpha x_d) / sigma."""

    calls: int = 0

    device = torch.device("cpu")
    num_timesteps = 1000

    def encode(self, image: Tensor) -> Tensor:
        return image

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t / 1000)[:, None, None, None]

    def sigma(self, t: Tensor) -> Tensor:
        return (t / 1000)[:, None, None, None]

    def predict_noise(self, x_t: Tensor, t: Tensor, cond: Any, cameras: Cameras | None = None) -> Tensor:
        self.calls += 1
        told = SIDES[cond["side"]]
        if "share" in cond:
            told = told + cond["share"][:, None, None, None] * SIDES[(cond["side"] + 1) % DIRECTIONS]
        return (x_t - self.alpha(t) * told) / self.sigma(t)


def condition(cameras: Cameras, step: Step, render: Any = None) -> Condition:
    index = (cameras.azimuth_deg / 22.5).round().long() % DIRECTIONS
    return Condition({"text": {"side": index}}, cameras, step)


@pytest.mark.parametrize("side", [0, 3, 4, 8, 12, 15])
def test_the_side_whose_prompt_explains_the_picture_is_chosen_with_errors_by_hand(side: int) -> None:
    """The error is (alpha / sigma)^2 |x - x_d|^2 / D, whatever the noise, and then a half and two quarters of neighbours'."""
    prior, g = Told(), torch.Generator().manual_seed(0)
    # The neighbours look alike, as an object's sides do.
    picture = SIDES[side]
    found = estimate_azimuth(prior, condition, picture, 20.0, g)  # type: ignore[arg-type]
    apart = (picture - SIDES).square().mean((1, 2, 3))
    share = sum(((1 - level) / level) ** 2 for level in LEVELS) / len(LEVELS)
    plain = share * apart
    smooth = 0.5 * plain + 0.25 * (plain.roll(1) + plain.roll(-1))
    turned = {(22.5 * index + 180) % 360 - 180: smooth[index].item() for index in range(DIRECTIONS)}
    assert found.errors == pytest.approx(turned, rel=1e-3)
    front = [angle for angle in turned if abs(angle) <= 90]
    assert len(front) == 9 and found.azimuth_deg == min(front, key=lambda angle: turned[angle])
    if side != 8:  # straight from behind, which is never chosen
        assert abs((found.azimuth_deg - 22.5 * side + 180) % 360 - 180) <= 22.5
    assert prior.calls == len(LEVELS) * DRAWS


def test_the_same_noises_are_compared_and_the_result_does_not_depend_on_others() -> None:
    once, again = (
        estimate_azimuth(Told(), condition, SIDES[5], 0.0, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
        for seed in (0, 1)
    )
    assert once.azimuth_deg == again.azimuth_deg
    assert once.errors == pytest.approx(again.errors, rel=1e-3)


A_BED = ["a", "a red", "an orange", "a yellow", "a green", "a blue", "a purple", "a pink", "a brown"]


def worded(share: float) -> Conditioner:
    """A wording whose picture of each side is so far from the true one: share times the next side's."""

    def condition(cameras: Cameras, step: Step, render: Any = None) -> Condition:
        index = (cameras.azimuth_deg / 22.5).round().long() % DIRECTIONS
        return Condition(
            {"text": {"side": index, "share": torch.full((len(cameras),), share)}}, cameras, step
        )

    return condition


def test_the_wording_that_explains_the_picture_is_first_with_errors_by_hand() -> None:
    """At the right side, the error is (alpha / sigma)^2 share^2 |x_next|^2 / D, and the least of all sides counts."""
    conditions = {"a mug": worded(0.5), "a red mug": worded(0.1), "a blue mug": worded(1.0)}
    g = torch.Generator().manual_seed(0)
    found = compare_wordings(Told(), conditions, SIDES[3], in_front(20.0), g)  # type: ignore[arg-type]
    level = sum(((1 - level) / level) ** 2 for level in LEVELS) / len(LEVELS)
    assert list(found) == [*conditions] and better_wording(found) == "a red mug"
    for text, share in (("a red mug", 0.1), ("a mug", 0.5)):
        assert found[text] == pytest.approx(level * (share * SIDES[4]).square().mean().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        ({"a mug": 1.0, "a red mug": 0.98, "a blue mug": 0.99}, "a mug"),
        ({"a mug": 1.0, "a red mug": 0.98, "a blue mug": 0.96}, "a blue mug"),
        ({"a mug": 0.9, "a red mug": 1.0}, "a mug"),
        ({"a mug": 0.5}, "a mug"),
    ],
)
def test_another_wording_must_be_clearly_better(errors: dict[str, float], best: str) -> None:
    assert better_wording(errors) == best


def test_cameras_in_front_are_the_nine_directions_of_the_front_half() -> None:
    cameras = in_front(20.0)
    assert sorted(cameras.azimuth_deg.tolist()) == [-90, -67.5, -45, -22.5, 0, 22.5, 45, 67.5, 90]
    assert cameras.elevation_deg.tolist() == [20.0] * 9


@pytest.mark.parametrize(
    ("prior", "prompt", "captions"),
    [
        # Its own colour and the eight, in the prompt's words.
        ("things", "a sedan", ["a sedan", *(f"a{'n' if c == 'orange' else ''} {c} sedan" for c in COLOURS)]),
        ("things", "a photo of a bed, back view", [f"a photo of {some} bed, back view" for some in A_BED]),
        ("things", "a red sedan", ["a red sedan"]),
        # The colour of a hamburger cannot be chosen.
        ("things", "a hamburger", ["a hamburger"]),
        # A kind always has a colour, its usual one first.
        ("embedded", "a mushroom", ["a red mushroom", *(f"{some} mushroom" for some in A_BED[2:])]),
        ("embedded", "a blue mushroom", ["a blue mushroom"]),
    ],
)
def test_captions_in_every_colour_that_can_be_asked_for(prior: str, prompt: str, captions: list[str]) -> None:
    known = of_prior(prior)
    assert known is not None
    assert in_colours(prompt, known) == captions


def painted(*parts: tuple[tuple[float, float, float], int]) -> list[str]:
    """The colours that a picture of 100 pixels shows, so many of each colour; the others are no object."""
    rgb, mask = torch.ones(3, 1, 100), torch.zeros(1, 1, 100)
    begin = 0
    for colour, count in parts:
        rgb[:, 0, begin : begin + count] = torch.tensor(colour)[:, None]
        mask[..., begin : begin + count] = 1
        begin += count
    return shown_colours(rgb, mask, COLOURS)


@pytest.mark.parametrize(("colour", "rgb"), COLOURS.items())
@pytest.mark.parametrize("light", [0.5, 1.0])
def test_each_colour_is_shown_by_its_own_lit_or_not(
    colour: str, rgb: tuple[float, float, float], light: float
) -> None:
    red, green, blue = (light * value for value in rgb)
    assert colour in painted(((red, green, blue), 90))


def test_a_colour_is_shown_by_a_tenth_of_the_object_and_greys_show_none() -> None:
    black, grey, white = (0.02, 0.02, 0.02), (0.5, 0.5, 0.47), (0.95, 0.95, 0.95)
    assert painted((black, 20), (grey, 20), (white, 40)) == []
    assert painted((COLOURS["green"], 5), (grey, 45)) == ["green"]
    assert painted((COLOURS["green"], 4), (grey, 46)) == []
    assert painted() == []


NAMED = ["prompt='a kettle'", "image=p.png"]


def test_a_real_objects_name_and_a_picture_have_a_preset_of_their_own() -> None:
    config = compose_config(NAMED)
    assert config.prior == "things" and config.guidance.terms == [{"loss": "sds", "scale": 5.0}]
    assert config.reference.azimuth_deg is None and config.reference.elevation_deg == 20
    assert (config.reference.colour, config.reference.backdrop) == ("auto", "auto")
    assert (config.iterations, config.reference.fill, config.scene.background) == (400, 0.7, "white")
    assert (config.timesteps.t_min, config.timesteps.t_max_end) == (0.1, 0.5)
    assert (config.penalties.reference_rgb, config.penalties.reference_palette) == (10000, 1000)
    assert compose_config(["image=p.png"]).penalties.reference_palette == 1000


def test_to_set_an_option_of_the_scene_is_no_other_way_to_make_the_asset() -> None:
    tuned = compose_config([*NAMED, "scene.march_steps=50"])
    assert tuned.guidance.terms == [{"loss": "sds", "scale": 5.0}] and tuned.scene.march_steps == 50
    assert compose_config(["prompt='a kettle'", "scene.march_steps=50"]).guidance.scale == 5


@pytest.mark.parametrize(
    ("white", "words", "background"),
    [
        (19, [], "white"),
        (21, [], "grey"),
        (21, ["reference.backdrop=null"], "white"),
        (21, ["scene.background=random"], "random"),
        (21, ["scene.background=white"], "white"),
        (21, ["scene.background=white", "reference.backdrop=auto"], "grey"),
    ],
)
def test_an_object_that_is_much_white_is_trained_over_grey(
    tmp_path: Path, white: int, words: list[str], background: str
) -> None:
    """A square of 40 x 40 pixels on nothing, so many percent of it white."""
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[12:52, 12:52] = (200, 40, 30, 255)
    rows = picture[12:52, 12:52].copy().reshape(-1, 4)
    rows[: 16 * white] = (250, 250, 250, 255)
    picture[12:52, 12:52] = rows.reshape(40, 40, 4)
    Image.fromarray(picture).save(tmp_path / "p.png")
    config = compose_config(["prompt='a kettle'", f"image={tmp_path / 'p.png'}", *words])
    (scene,), _ = make_scenes(config, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert isinstance(scene, HashGridScene) and scene.background == background


@pytest.mark.slow
def test_a_run_says_once_that_it_trains_over_grey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[12:52, 12:52] = (250, 250, 250, 255)
    Image.fromarray(picture).save(tmp_path / "p.png")
    words = ["reference.azimuth_deg=30", *QUICK, "export.enabled=false", "output_dir=out"]
    with caplog.at_level("INFO"):
        assert command("a kettle", "image=p.png", *words) == 0
    assert caplog.text.count("training over a changing grey (reference.backdrop=null keeps white)") == 1
    said = json.loads((tmp_path / "out" / "manifest.json").read_text())["picture"]
    # White shows no colour, so that the prompt stays as it is and nothing is compared.
    assert said["backdrop"] == "grey" and "prompt" not in said


def test_a_backdrop_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"reference\.backdrop=auto would do nothing: add scene\.background=white"
    ):
        compose_config([*NAMED, "reference.backdrop=auto", "scene.background=random"])


@pytest.mark.parametrize("words", [["image=p.png"], ["prompt='a red mug'", "image=p.png"]])
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("reference.backdrop=auto", "may train over grey; add reference.backdrop=null"),
        ("scene.background=grey", "must be white, got grey; add scene.background=white"),
        ("scene.background=[1,1,0]", "must be white, got [1, 1, 0]; add scene.background=white"),
        ("scene.random_background=0.5", "must be 0.0, got 0.5; add scene.random_background=0.0"),
    ],
)
def test_a_model_that_knows_objects_over_white_is_shown_no_other(
    words: list[str], option: str, said: str
) -> None:
    with pytest.raises(ValueError, match="novel-view model, which knows objects over white") as raised:
        compose_config([*words, option])
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "words",
    [
        ["prompt='a red mug'", "image=p.png"],
        [*NAMED, "guidance=mix"],
        [*NAMED, "novel_view=embedded", "preset=embedded_image", "guidance=mix"],
        ["image=p.png"],
    ],
)
def test_all_else_is_guided_by_the_novel_view_model(words: list[str]) -> None:
    config = compose_config(words)
    assert config.reference.azimuth_deg == 0 and config.reference.fill == 0.6
    terms = config.guidance.get("terms") or [{"prior": "novel_view"}]
    assert terms[0].get("prior") == "novel_view"


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (NAMED, False),
        # The loss is that of the text prior alone.
        (["prompt='a red mug'", "image=p.png", "guidance=sds"], False),
        (["prompt='a red mug'", "image=p.png"], True),
        (["image=p.png"], True),
    ],
)
def test_only_a_model_that_is_asked_finds_the_objects_axis(words: list[str], asked: bool) -> None:
    assert is_asked(compose_config(words)) is asked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["image=p.png"], "compares the picture with the prompt's directions, and there is no prompt"),
        (["prompt='a red mug'", "image=p.png"], "reference.start=samples draws views before the azimuth is estimated"),
        (
            ["prompt='a red mug'", "image=p.png", "reference.start=none", "view_words=four"],
            "prior=embedded is told 4; give the azimuth in degrees",
        ),
        ([*NAMED, "view_words=none"], "prior=things is told 0; give the azimuth in degrees"),
    ],
)  # fmt: skip
def test_what_an_estimate_does_not_go_with(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=r"reference\.") as raised:
        compose_config([*words, "reference.azimuth_deg=null"])
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["image=p.png"], "reference.colour=auto adds a colour to the prompt, and there is no prompt; add one, or add reference.colour=null"),
        (
            [*NAMED, "guidance=mix", "preset=things_image", "guidance.terms=[{loss:sds,prior:novel_view}]", "reference.azimuth_deg=0", "reference.backdrop=null"],
            "which no term of guidance.terms uses; add reference.colour=null",
        ),
        ([*NAMED, "view_words=four", "views.front='a pan'", "reference.azimuth_deg=0"], "views.* has prompts of its own; add reference.colour=null"),
        (
            ["prompt='a red mug'", "image=p.png", "prior=some/model", "novel_view=embedded"],
            "reference.colour=auto needs a prior with a list of colours, as the bundled ones have, and prior=some/model takes any words",
        ),
    ],
)  # fmt: skip
def test_what_a_colour_cannot_be_added_to(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=r"reference\.colour") as raised:
        compose_config([*words, "reference.colour=auto"])
    assert message in str(raised.value) and "\n" not in str(raised.value)
    # The remedy is one.
    assert compose_config([*words, "reference.colour=null"]).reference.colour is None


@pytest.mark.slow
def test_the_colour_that_is_found_is_what_the_loss_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the azimuth given, wordings are compared at the picture's camera alone."""
    picture = np.full((48, 48, 3), 255, np.uint8)
    picture[12:36, 16:40] = (200, 40, 30)
    Image.fromarray(picture).save(tmp_path / "p.png")
    asked: list[tuple[list[str], list[float]]] = []

    def compared(
        prior: Prior, conditions: dict[str, Conditioner], rgb: Tensor, cameras: Cameras, g: Any
    ) -> Any:
        asked.append(([*conditions], cameras.azimuth_deg.tolist()))
        return {text: 0.5 if "red" in text else 1.0 for text in conditions}

    monkeypatch.setattr(conditioning, "compare_wordings", compared)
    words = ["prompt='a kettle'", f"image={tmp_path / 'p.png'}", "reference.azimuth_deg=30"]
    job = assemble(compose_config(words))
    known = of_prior("things")
    assert known is not None and asked == [(in_colours("a kettle", known, ["red", "brown"]), [30.0])]
    cameras, step = turntable(3), Step()
    right, plain = (
        conditioner(job.prior, text, views=view_words("sixteen", "things"))(cameras, step).text
        for text in ("a red kettle", "a kettle")
    )
    told = job.condition(cameras, step).text
    assert all(torch.equal(told[name], right[name]) for name in right)
    assert not all(torch.equal(told[name], plain[name]) for name in right)
    # A colour that is said is the prompt's.
    assemble(compose_config(["prompt='a red kettle'", *words[1:]]))
    assert len(asked) == 1


@pytest.mark.slow
def test_a_run_estimates_the_azimuth_and_compares_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = np.full((48, 48, 3), 255, np.uint8)
    picture[12:36, 16:40] = (200, 40, 30)
    Image.fromarray(picture).save(tmp_path / "p.png")
    assert command("a kettle", "image=p.png", *QUICK, "export.enabled=false", "output_dir=out") == 0
    said = json.loads((tmp_path / "out" / "manifest.json").read_text())["picture"]
    plain = framed(compose_config(NAMED))[1]
    assert said["frame"] == pytest.approx([plain.left, plain.top, plain.side], abs=0.01)
    errors = said["azimuth_errors"]
    assert said["azimuth"] == "estimated" and len(errors) == DIRECTIONS
    front = [angle for angle in errors if abs(float(angle)) <= 90]
    # Errors are written with four places.
    assert errors[f"{said['azimuth_deg']:g}"] == min(errors[angle] for angle in front)
    # Brown is a dark orange, and nearer to red than the others.
    assert {*said["prompt_errors"]} == {"a kettle", "a red kettle", "a brown kettle"}
    # The picture is red.
    assert said["prompt"] == "a red kettle"
    assert (
        command(
            "a kettle",
            "image=p.png",
            "reference.azimuth_deg=30",
            "reference.colour=null",
            *QUICK,
            "export.enabled=false",
            "output_dir=given",
        )
        == 0
    )
    said = json.loads((tmp_path / "given" / "manifest.json").read_text())["picture"]
    assert (said["azimuth"], said["azimuth_deg"]) == ("given", 30)
    assert not {"azimuth_errors", "prompt", "prompt_errors"} & {*said}
