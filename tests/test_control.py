"""ControlNets against diffusers' own pipelines, and the pictures that they are shown, by hand."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_pipelines import make
from torch import Tensor
from usual import optimiser_of, settings_of

import distill
from distill import loop
from distill.cameras import Cameras, orbit, turntable
from distill.conditions.control import controlled, draw_depth, draw_mask, draw_normal, with_control
from distill.contracts import Condition, Render, Step
from distill.forecast.network import forecast, shadow
from distill.job import Job, State
from distill.priors import load_prior
from distill.priors.diffusion import DiffusionPrior
from distill.priors.exact import dirac
from distill.renderers.image import ImageScene
from distill.run.config.compose import compose_config
from distill.samplers.cameras import ranges
from distill.samplers.schedules import Ramp
from distill.samplers.timesteps import uniform

SCALE = 0.7


@dataclass(frozen=True)
class Kind:
    """How a pipeline and its ControlNet are made and called.

    Attributes:
        maker: of the pipeline without a ControlNet, see ``tiny_pipelines``.
        pipeline: its class with one.
        settings: of the ControlNet, beside those that it shares with the network.
        called: for how the pipeline is called.
        size: of pictures, pixels.
    """

    maker: str
    pipeline: str
    settings: dict[str, Any]
    called: dict[str, Any]
    size: int = 64


STEPS: dict[str, Any] = {"num_inference_steps": 3}
SIGMAS: dict[str, Any] = {"sigmas": [0.8, 0.4]}
SD, XL = "StableDiffusionControlNetPipeline", "StableDiffusionXLControlNetPipeline"
SD3, FLUX = "StableDiffusion3ControlNetPipeline", "FluxControlNetPipeline"
SMALL = {"conditioning_embedding_out_channels": (4, 4, 8, 8)}
TOLD = {"force_zeros_for_pooled_projection": False}
KINDS = {
    "stable_diffusion": Kind("stable_diffusion", SD, SMALL, STEPS),
    "stable_diffusion_v": Kind("stable_diffusion_v", SD, SMALL, STEPS),
    "stable_diffusion_xl": Kind("stable_diffusion_xl", XL, SMALL, STEPS),
    "stable_diffusion_3": Kind("stable_diffusion_3", SD3, {}, SIGMAS),
    "stable_diffusion_3_pooled": Kind("stable_diffusion_3", SD3, {**TOLD, "num_layers": 1}, SIGMAS),
    "stable_diffusion_3.5_large": Kind(
        "stable_diffusion_3", SD3, {**TOLD, "joint_attention_dim": None, "use_pos_embed": False}, SIGMAS
    ),
    "flux": Kind("flux", FLUX, {"num_layers": 2, "num_single_layers": 0}, SIGMAS),
    "flux_undistilled": Kind("flux_undistilled", FLUX, {"guidance_embeds": True}, SIGMAS),
    "flux_own_layers": Kind(
        "flux", FLUX, {"num_layers": 2, "conditioning_embedding_channels": 4, "patch_size": 2}, SIGMAS
    ),
    "sana": Kind(
        "sana", "SanaControlNetPipeline", {}, {**STEPS, "use_resolution_binning": False}, 32
    ),
}  # fmt: skip


def only(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", names, indirect=True)


def save_controlnet(network: Any, folder: Path, **settings: Any) -> Any:
    """A ControlNet for a network, random where a fresh one is zero and would add nothing."""
    import diffusers

    torch.manual_seed(7)
    if "UNet" in type(network).__name__:
        made = diffusers.ControlNetModel.from_unet(network, **{**SMALL, **settings})
        own = made.controlnet_cond_embedding
    else:
        kind = getattr(diffusers, type(network).__name__.replace("Transformer2DModel", "ControlNetModel"))
        made = kind(**{**shared(network, kind), **settings})
        own = getattr(made, "input_hint_block", None) or torch.nn.ModuleList()
    fresh = [weight for weight in made.parameters() if weight.ndim > 1 and not weight.any()]
    assert fresh
    for weight in fresh:
        torch.nn.init.normal_(weight, std=0.3)
    for layer in own.modules():
        if hasattr(layer, "weight"):
            torch.nn.init.kaiming_normal_(layer.weight)
    made.eval().requires_grad_(False).save_pretrained(folder)
    return made


def shared(network: Any, kind: Any) -> dict[str, Any]:
    """A network's settings that a class has, too."""
    known = inspect.signature(kind).parameters
    return {name: value for name, value in network.config.items() if name in known}


@dataclass(frozen=True)
class Case:
    """A pipeline with a ControlNet, the folders of both, and the prior that was loaded from them."""

    name: str
    kind: Kind
    pipeline: Any
    folder: Path
    prior: DiffusionPrior

    def load(self, **options: Any) -> DiffusionPrior:
        return load(self.folder, self.kind.size, **options)

    def picture(self, seed: int = 3, batch: int = 1) -> Tensor:
        return picture(self.kind.size, seed, batch)

    def as_latents(self, x: Tensor) -> Tensor:
        """FLUX's pipeline keeps its latents folded."""
        return self.pipeline._unpack_latents(x, 64, 64, 8) if "flux" in self.name else x


@pytest.fixture(scope="module", params=list(KINDS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    import diffusers

    name, kind = request.param, KINDS[request.param]
    folder, plain = tmp_path_factory.mktemp(name), make(kind.maker)
    if kind.maker in ("stable_diffusion_3", "flux", "flux_undistilled"):
        certain(plain.vae)
    if "flux" in name:  # more layers than the ControlNet's, so that it counts which it is added after
        plain.transformer = type(plain.transformer).from_config({**plain.transformer.config, "num_layers": 3})
        plain.transformer.eval()
    plain.save_pretrained(folder / "prior")
    network = plain.unet if hasattr(plain, "unet") else plain.transformer
    controlnet = save_controlnet(network, folder / "control", **kind.settings)
    more = {"requires_safety_checker": False} if kind.pipeline == SD else {}
    pipeline = getattr(diffusers, kind.pipeline)(**plain.components, controlnet=controlnet, **more)
    pipeline.set_progress_bar_config(disable=True)
    return Case(name, kind, pipeline, folder, load(folder, kind.size))


def certain(vae: Any) -> None:
    """Let a VAE draw its mean: the pipelines draw from it, and a prior takes the mean."""
    last = vae.encoder.conv_out
    with torch.no_grad():
        last.weight[last.out_channels // 2 :] = 0
        last.bias[last.out_channels // 2 :] = -30


def load(folder: Path, size: int = 64, **options: Any) -> DiffusionPrior:
    told = {"controlnet": folder / "control", "control_scale": SCALE, **options}
    return load_prior(folder / "prior", dtype=torch.float32, image_size=size, **told)


def picture(size: int = 64, seed: int = 3, batch: int = 1) -> Tensor:
    return torch.randint(256, (batch, 3, size, size), generator=torch.Generator().manual_seed(seed)) / 255


def fed(case: Case, prompt: str, scale: float) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What the pipeline feeds its scheduler: output, timestep, and the noised sample as the network sees it."""
    pipeline, kind, seen = case.pipeline, case.kind, []
    step: Callable[..., Any] = pipeline.scheduler.step
    scaled = getattr(pipeline.scheduler, "scale_model_input", lambda x, t: x)

    def recorded(output: Any, t: Any, sample: Any, *rest: Any, **options: Any) -> Any:
        seen.append((case.as_latents(output).clone(), t.clone(), case.as_latents(scaled(sample, t)).clone()))
        return step(output, t, sample, *rest, **options)

    shown = Image.fromarray((case.picture()[0].movedim(0, -1) * 255).round().byte().numpy())
    told = {"image" if kind.pipeline in (SD, XL) else "control_image": shown}
    pipeline.scheduler.step = recorded
    try:
        pipeline(
            [prompt], height=kind.size, width=kind.size, guidance_scale=scale, output_type="latent",
            controlnet_conditioning_scale=SCALE, generator=torch.Generator().manual_seed(1), **told, **kind.called,
        )  # fmt: skip
    finally:
        pipeline.scheduler.step = step
    return seen


#: FLUX's scale is given to a distilled network, 3.5 by a prior. Where its pipeline guides besides, what the
#: ControlNet made of the prompt is added to the prediction without prompt, too, which a prior does not: it is given each alone.
CALLED = [
    (name, prompt, scale)
    for name in KINDS
    for prompt, scale in ((("a red mug", 3.5), ("", 3.5)) if "flux" in name else (("a red mug", 1), ("a red mug", 4)))
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("case", "prompt", "scale"), CALLED, indirect=["case"])
def test_predictions_are_what_the_pipeline_feeds_its_scheduler(case: Case, prompt: str, scale: float) -> None:
    prior, embedded = case.prior, case.prior.embed([prompt, ""])
    shown, another = (prior.show(case.picture(seed)) for seed in (3, 4))
    told, empty = (
        {**{name: value[i : i + 1] for name, value in embedded.items()}, "control": shown} for i in (0, 1)
    )
    steps = fed(case, prompt, scale)
    assert len(steps) >= 2
    for output, time, x_t in steps:
        index = (prior.schedule.time - time).abs().argmin()[None]
        predicted = prior.predict(x_t, index, told)
        other = prior.predict(x_t, index, {**told, "control": another})
        assert (other - predicted).abs().max() > 0.01 * output.std()
        if scale > 1 and "flux" not in case.name:
            nothing = prior.predict(x_t, index, empty)
            predicted = nothing + scale * (predicted - nothing)
        torch.testing.assert_close(predicted, output, rtol=1e-4, atol=1e-5 * float(output.abs().max()))


@pytest.mark.slow
def test_at_scale_zero_the_prior_is_as_without(case: Case) -> None:
    silent, plain = case.load(control_scale=0.0), case.load(controlnet=None)
    shape = plain.encode(case.picture(batch=2)).shape
    x_t, t = torch.randn(shape, generator=torch.Generator().manual_seed(5)), torch.tensor([100, 900])
    cond = plain.embed(["a mug", "a cat"])
    expected = plain.predict_noise(x_t, t, cond)
    told = {**cond, "control": silent.show(case.picture(2, 2))}
    torch.testing.assert_close(silent.predict_noise(x_t, t, told), expected)


def test_each_row_is_shown_its_own_picture(case: Case) -> None:
    prior, pictures = case.prior, case.picture(batch=2)
    cond = prior.embed(["a mug", "a cat"])
    x_t = torch.randn(prior.encode(pictures).shape, generator=torch.Generator().manual_seed(5))
    t, told = torch.tensor([100, 900]), {**cond, "control": prior.show(pictures)}
    both = prior.predict_noise(x_t, t, told)
    for i in (slice(0, 1), slice(1, 2)):
        one = prior.predict_noise(x_t[i], t[i], {name: value[i] for name, value in told.items()})
        torch.testing.assert_close(both[i], one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


@pytest.mark.slow
def test_it_is_counted_before_it_is_loaded(case: Case) -> None:
    with_it, without = (
        forecast(shadow(case.prior.source, torch.float32, case.kind.size, controlnet=name), [2], 1)
        for name in (str(case.folder / "control"), None)
    )
    parts = dict(case.pipeline.controlnet.named_parameters())
    if not case.kind.settings.get("use_pos_embed", True):  # diffusers' pipeline gives it the network's
        parts = {name: p for name, p in parts.items() if not name.startswith("pos_embed.")}
    assert with_it.weights - without.weights == 4 * sum(p.numel() for p in parts.values())
    assert with_it.network > 1.01 * without.network
    # Where it is shown latents, the VAE makes them besides: once more without the way back.
    encodes = case.kind.pipeline not in (SD, XL) and case.name != "flux_own_layers"
    encoding = [each.operations - each.network for each in (with_it, without)]
    assert (encoding[0] > 1.3 * encoding[1]) if encodes else (encoding[0] == encoding[1])


def ahead(distance: float = 3.0, azimuth: float = 90.0) -> Cameras:
    return orbit(torch.tensor([azimuth]), torch.tensor([0.0]), distance, 40.0)


def test_depth_is_inverse_along_the_axis_and_stretched() -> None:
    """Planes across the axis at 2 and 4, and nothing: 1/2, 1/4 and 0, so 1, 1/2 and 0."""
    cameras, size = ahead(), 6
    along = (cameras.rays(size, size)[1] * -cameras.c2w[:, None, None, :3, 2]).sum(-1, keepdim=True)
    plane = torch.tensor([2.0, 2.0, 4.0, 4.0, 0.0, 0.0]).view(1, 1, size, 1).expand(1, size, size, 1)
    render = Render(torch.zeros(1, size, size, 3), (plane > 0).float(), plane / along)
    expected = torch.tensor([1.0, 1.0, 0.5, 0.5, 0.0, 0.0]).expand(1, 3, size, size)
    torch.testing.assert_close(draw_depth(render, cameras), expected)
    # Without anything empty, the farthest is 0 nevertheless; half transparent counts half.
    full = replace(render, depth=torch.full_like(plane, 2.0) / along, opacity=torch.ones_like(plane))
    full.opacity[..., 3:, :] = 0.5
    torch.testing.assert_close(draw_depth(full, cameras), (torch.arange(6) < 3).float().expand(1, 3, 6, 6))
    empty = Render(torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 1), torch.zeros(1, 2, 2, 1))
    assert not draw_depth(empty, cameras).any()


def test_normals_are_the_cameras_red_to_the_left() -> None:
    """A camera at azimuth 90 looks from +y: its right is -x, its up +z."""
    world = torch.tensor([[[[0.0, 1, 0], [-1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]]])
    opacity = torch.tensor([1.0, 1, 1, 1, 0]).view(1, 1, 5, 1)
    drawn = draw_normal(Render(world, opacity, opacity, world), ahead())[0, :, 0].T
    expected = [[0.5, 0.5, 1], [0, 0.5, 0.5], [1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1]]
    torch.testing.assert_close(drawn, torch.tensor(expected), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="needs a render with normals"):
        draw_normal(Render(world, opacity, opacity), ahead())


def test_the_mask_is_the_opacity() -> None:
    opacity = torch.rand(2, 4, 5, 1)
    drawn = draw_mask(Render(opacity, opacity, opacity), turntable(2))
    assert drawn.shape == (2, 3, 4, 5)
    assert all(torch.equal(drawn[:, i], opacity[..., 0]) for i in range(3))


@dataclass
class Showing:
    """What a ControlNet's picture is encoded by: ``times`` it."""

    image_size: int
    times: float = 1.0
    device = torch.device("cpu")

    def show(self, pictures: Tensor) -> Tensor:
        return self.times * pictures


def unconditioned(cameras: Cameras, step: Step, render: Render | None = None) -> Condition:
    """One number for every prompt there may be."""
    row = {"told": torch.zeros(len(cameras), 1)}
    return Condition(dict.fromkeys(("text", "uncond", "negative", "source", "plain"), row), cameras, step)


def showing(size: int, times: float = 1.0) -> Any:
    """Make a prior that can do nothing but show."""
    return Showing(size, times)


def test_a_picture_is_the_same_for_every_camera(tmp_path: Path) -> None:
    rgba = torch.randint(0, 256, (8, 8, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(rgba.numpy()).save(tmp_path / "lines.png")
    condition = controlled(unconditioned, showing(8), str(tmp_path / "lines.png"))
    render = Render(torch.zeros(3, 4, 4, 3), torch.zeros(3, 4, 4, 1), torch.zeros(3, 4, 4, 1))
    told = condition(turntable(3), Step(), render).text["control"]
    expected = (rgba[..., :3] / 255 * (rgba[..., 3:] / 255)).movedim(-1, 0)
    torch.testing.assert_close(told, expected.expand(3, 3, 8, 8))
    with pytest.raises(ValueError, match="conditioned on a render; give"):
        condition(turntable(3), Step())


def test_the_loop_tells_every_embedding_of_its_own_render() -> None:
    seen: list[tuple[Condition, Tensor]] = []
    prior = dirac({"": torch.zeros(3, 8, 8)})

    scene, g = ImageScene(8, 8, lr=0.1), torch.Generator().manual_seed(0)

    def render(cameras: Any, height: int, width: int, *, generator: Any = None, **options: Any) -> Render:
        rgb = scene.image.expand(len(cameras), -1, -1, -1)
        drawn = torch.rand(len(cameras), height, width, 1, generator=generator) * rgb[..., :1].detach() ** 0
        return Render(rgb, drawn.requires_grad_(), drawn)

    def guidance(prior: Any, x: Tensor, cond: Condition, t: Tensor, noise: Tensor) -> Tensor:
        seen.append((cond, x))
        return torch.zeros_like(x)

    shown: list[Render] = []
    loop.train(
        Job(
            State(scene, optimiser_of(scene), g), prior, guidance,
            controlled(unconditioned, showing(16, times=2.0), "mask"), render, ranges(), uniform(prior),
            settings_of(2, batch=2, size=Ramp(8)),
        ),
        lambda state, metrics, picture: shown.append(picture),
    )  # fmt: skip
    assert len(seen) == len(shown) == 2
    for (cond, _), picture in zip(seen, shown, strict=True):
        expected = torch.nn.functional.interpolate(
            picture.opacity.movedim(-1, 1), (16, 16), mode="bilinear", antialias=True
        )
        assert cond.prompts.keys() == {"text", "uncond", "negative", "source", "plain"}
        for embedding in cond.prompts.values():
            assert not embedding["control"].requires_grad
            torch.testing.assert_close(embedding["control"], 2 * expected.expand(2, 3, 16, 16))
        assert cond.step.uniform is not None


QUICK: dict[str, Any] = {
    "iterations": 2, "render.size": 16, "render.batch": 2, "scene.log2_table_size": 10, "scene.levels": 2,
    "export.enabled": False, "log.tensorboard": False, "log.preview_every": 0, "preset": "none",
}  # fmt: skip


@pytest.mark.slow
@only("stable_diffusion", "stable_diffusion_xl")
@pytest.mark.parametrize(
    "options",
    [
        {"guidance": "sds", "prior_options.control": "normal"},
        {"guidance": "sds", "perp_neg.enabled": True},
        {"guidance": "nfsd", "negative_prompt": "ugly", "prior_options.control": "mask"},
        {"guidance": "vsd", "guidance.view_text": False},
        {"guidance": "vsd", "perp_neg.enabled": True},
        {"guidance": "dds", "source_prompt": "a cup"},
        {"guidance": "mix", "guidance.terms": [{"loss": "csd"}, {"loss": "sds", "prompt": "a cup"}]},
        {"guidance": "ism", "particles": 2, "prior_options.control": "normal"},
    ],
    ids=str,
)
def test_a_run_with_a_loss(case: Case, options: dict[str, Any], tmp_path: Path) -> None:
    check_run(case, options, tmp_path)


@only("stable_diffusion_3.5_large", "flux", "sana")
@pytest.mark.parametrize("guidance", ["sds", "vsd"])
def test_a_run_on_a_transformer_encodes_what_is_shown_once_a_step(
    case: Case, guidance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learns, vae = [], case.prior.space.vae
    encode: Callable[..., Any] = vae.encode

    def recorded(images: Tensor) -> Any:
        learns.append(torch.is_grad_enabled() and images.requires_grad)
        return encode(images)

    monkeypatch.setattr(vae, "encode", recorded)
    check_run(case, {"guidance": guidance}, tmp_path)
    assert learns == [True, False] * QUICK["iterations"]


def check_run(case: Case, options: dict[str, Any], tmp_path: Path) -> None:
    told = {**QUICK, "prior_options.control": "depth", **options}
    asset = distill.generate("a red mug", prior=case.prior, output_dir=tmp_path / "run", **told)
    assert asset.manifest["skipped_steps"] == 0
    said = asset.manifest["controlnet"]
    assert said["scale"] == SCALE and said["shown"] == told["prior_options.control"]
    assert list(said["sha256"]) == ["diffusion_pytorch_model.safetensors"]


@only("stable_diffusion", "stable_diffusion_3", "sana")
def test_a_run_from_options_alone(case: Case, tmp_path: Path) -> None:
    Image.new("RGB", (16, 8), "red").save(tmp_path / "red.png")
    options = {
        "prior_options.controlnet": str(case.folder / "control"),
        "prior_options.control": str(tmp_path / "red.png"),
        "prior_options.control_scale": 0.5,
        "prior_options.image_size": case.kind.size,
    }
    flat: dict[str, Any] = {
        "iterations": 1,
        "scene": "image",
        "log.tensorboard": False,
        "preset": "none",
        "render.size": 16,
    }
    asset = distill.generate(
        "a red mug", prior=case.folder / "prior", output_dir=tmp_path / "run", **flat, **options
    )
    assert asset.manifest["controlnet"]["scale"] == 0.5


@only("stable_diffusion", "stable_diffusion_xl")
def test_what_does_not_belong_together_is_said(case: Case, tmp_path: Path) -> None:
    for alone in ("controlnet=x", "control=depth"):
        with pytest.raises(ValueError, match=r"control belong together: .* give both, or leave out both$"):
            compose_config(["prompt=a", f"prior_options.{alone}"])
    assert compose_config(["prompt=a", "prior_options.control=depth"], loaded=True).prior_options.control
    x_t, t, cond = torch.zeros(1, 4, 8, 8), torch.tensor([5]), case.prior.embed(["a"])
    with pytest.raises(ValueError, match="this prior has a ControlNet, and the embedding no picture for it"):
        case.prior.predict_noise(x_t, t, cond)
    plain = case.load(controlnet=None)
    with pytest.raises(ValueError, match="this prior has no ControlNet to show a picture to"):
        plain.show(picture())
    with pytest.raises(ValueError, match="this prior has no ControlNet, and the embedding a picture for it"):
        plain.predict_noise(x_t, t, with_control(Condition({"text": cond, "uncond": cond}), picture()).text)

    def run(prior: Any, control: str | None, **options: Any) -> None:
        told = {**QUICK, "prior_options.control": control, **options}
        distill.generate("a red mug", prior=prior, output_dir=tmp_path / "run", **told)

    with pytest.raises(
        ValueError, match=r"prior_options.controlnet and prior_options.control belong together"
    ):
        run(plain, "depth")
    with pytest.raises(
        ValueError, match=r"prior_options.controlnet and prior_options.control belong together"
    ):
        run(case.prior, None)
    with pytest.raises(
        ValueError, match=r"prior_options.control must be a picture file, .* not there.* depth, normal, mask"
    ):
        run(case.prior, str(tmp_path / "nowhere.png"))
    flat: dict[str, Any] = {"prompt": "a mug", "scene": "image", "log.tensorboard": False, "preset": "none"}
    with pytest.raises(ValueError, match=r"prior_options.control=depth needs a scene that has a shape"):
        distill.generate(
            prior=case.prior, output_dir=tmp_path / "run", **flat, **{"prior_options.control": "depth"}
        )


@only("stable_diffusion", "stable_diffusion_xl")
def test_a_controlnet_that_does_not_fit_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    from tiny_pipelines import unet

    def refused(controlnet: Any, said: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=said) as caught:
            case.load(controlnet=controlnet, **options)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "nowhere", "must be a folder with a config.json and safetensors, or a hub id")
    save_controlnet(unet(cross=24), tmp_path / "other")
    refused(tmp_path / "other", "made for another network than this prior's: its cross_attention_dim is 24")
    small = {"conditioning_embedding_out_channels": (4, 4)}
    save_controlnet(case.pipeline.unet, tmp_path / "small", **small)
    refused(tmp_path / "small", "makes pictures 2 times smaller, and this prior 8 times")
    (tmp_path / "old").mkdir()
    settings = json.loads((case.folder / "control" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "old" / "diffusion_pytorch_model.bin").write_bytes(b"")
    refused(tmp_path / "old", "could not load the ControlNet in .* .safetensors in the diffusers layout.")
    (tmp_path / "old" / "config.json").write_text(
        json.dumps({**settings, "_class_name": "FluxControlNetModel"})
    )
    refused(tmp_path / "old", "must be a ControlNetModel .* is a FluxControlNetModel$")
    (tmp_path / "old" / "config.json").write_text(json.dumps({**settings, "global_pool_conditions": True}))
    refused(tmp_path / "old", "is a ControlNetModel that pools it")


@only("stable_diffusion_3", "flux", "sana")
def test_a_transformers_that_does_not_fit_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    network, wanted = case.pipeline.transformer, type(case.pipeline.controlnet).__name__

    def refused(folder: str, said: str) -> None:
        for ask in (case.load, partial(shadow, case.prior.source, torch.float32, 64)):
            with pytest.raises(ValueError, match=said) as caught:
                ask(controlnet=str(tmp_path / folder))
            assert "\n" not in str(caught.value)

    others = {"extra_conditioning_channels": "wants a mask, too", "num_mode": r"is several in one \(union\)"}
    for setting, said in others.items():
        if setting in inspect.signature(type(case.pipeline.controlnet)).parameters:
            save_controlnet(network, tmp_path / setting, **{setting: 2})
            refused(setting, f"must be a {wanted} .* is a {wanted} that {said}$")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    refused("other", f"must be a {wanted} .* is a ControlNetModel$")
    save_controlnet(network, tmp_path / "wide", num_attention_heads=4, **WIDE.get(case.name, {}))
    with pytest.raises(ValueError, match="another network than this prior's: its num_attention_heads is 4"):
        case.load(controlnet=tmp_path / "wide")


#: What else a ControlNet of twice the width has twice.
WIDE = {"stable_diffusion_3": {"caption_projection_dim": 32}, "sana": {"cross_attention_dim": 32}}


@pytest.mark.parametrize("name", ["pixart", "deepfloyd"])
def test_other_families_say_that_they_have_none(name: str, tmp_path: Path) -> None:
    make(name).save_pretrained(tmp_path / "prior")
    with pytest.raises(
        ValueError, match=r"works with .*StableDiffusionPipeline, StableDiffusionXLPipeline, and not with"
    ):
        load_prior(tmp_path / "prior", image_size=8 if name == "deepfloyd" else 64, controlnet=tmp_path)
