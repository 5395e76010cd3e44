"""Novel-view pipeline: loading, saving, sampling."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.files.errors import first_line
from distill.priors.choices import FOURTH
from distill.priors.dtypes import precision
from distill.priors.novel_view.code import TurnOptions
from distill.priors.novel_view.features import Encoder, Features, load_encoder
from distill.priors.novel_view.model import NovelView, build
from distill.priors.predictions import classifier_free_guidance, to_noise
from distill.priors.space import Space, downsampling

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

log = logging.getLogger(__name__)

#: Published folders: where the token's projection lies, and under which name.
PUBLISHED = {"cc_projection": "projection", "clip_camera_projection": "proj"}


@dataclass(frozen=True)
class Given:
    """Condition pictures, encoded once: one for any number of views, or one for each.

    Attributes:
        latent: in the model's space, shape ``[pictures, channel, height, width]``.
        features: of the encoder, as many.
    """

    latent: Tensor
    features: Features

    def repeated(self, count: int) -> tuple[Tensor, Features]:
        """Repeat the pictures in turn for a batch of views, a multiple of their number."""
        times = count // len(self.latent)

        def again(value: Tensor) -> Tensor:
            return value.repeat(times, *[1] * (value.ndim - 1))

        return again(self.latent), Features(again(self.features.token), again(self.features.maps))

    def part(self, start: int, end: int) -> Given:
        """The pictures of some of the views; all of them where there is only one."""
        if len(self.latent) == 1:
            return self
        token, maps = self.features.token[start:end], self.features.maps[start:end]
        return Given(self.latent[start:end], Features(token, maps))


@dataclass(frozen=True)
class NovelViewPipeline:
    """A novel-view model with its encoder, its noise schedule and its VAE, if it works on latents.

    Attributes:
        model: the network.
        encoder: of the condition picture.
        scheduler: of diffusers; any that steps.
        vae: picture to latent, or None for pixels in [-1, 1], folded into patches where the network takes more
            than three channels.
        fourth: the pose's fourth number, see ``distill.priors.novel_view.pose``.
        folder: that it was loaded from, or None.
        offset: how far from the axis that cameras go round objects were, at most, in its training, scene units.
    """

    model: NovelView
    encoder: Encoder
    scheduler: SchedulerMixin
    vae: AutoencoderKL | None = None
    fourth: str = "distance"
    folder: Path | None = None
    offset: float = 0.0

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def space(self) -> Space:
        """Maps pictures to what is noised: latents, or pixels folded into patches."""
        config = self.model.unet.config
        factor = downsampling(self.vae, config.out_channels)
        return Space.of(self.vae, config.out_channels, int(config.sample_size) * factor)

    @property
    def size(self) -> int:
        """Height and width of the pictures, pixels."""
        return self.space.image_size

    @torch.no_grad()
    def look(self, rgb: Tensor) -> Given:
        """Encode condition pictures in [0, 1], ``[3, h, w]`` or ``[pictures, 3, h, w]``.

        Their latents are not scaled, as in Zero-1-to-3.
        """
        batch = (rgb if rgb.ndim == 4 else rgb[None]).to(self.device)
        return Given(self.space.encode(batch, scaled=False), self.encoder(batch))

    @torch.no_grad()
    def predict_noise(self, x_t: Tensor, t: Tensor, given: Given, pose: Tensor, scale: float = 1.0) -> Tensor:
        """The noise in ``x_t`` with classifier-free guidance, in one batched call.

        Args:
            x_t: noised views, shape ``[batch, channel, height, width]``.
            t: timesteps, shape ``[batch]``.
            given: the condition picture.
            pose: of each view, shape ``[batch, 4]``.
            scale: 1 is purely conditional.
        """
        guided = self._predict(x_t, t, given, pose, scale)
        abar = self.scheduler.alphas_cumprod.to(x_t)[t][:, None, None, None]
        return to_noise(self.scheduler.config.prediction_type, guided, x_t, abar.sqrt(), (1 - abar).sqrt())

    def _predict(self, x_t: Tensor, t: Tensor, given: Given, pose: Tensor, scale: float) -> Tensor:
        count = len(x_t)
        if scale == 1:
            return self.model(x_t, t, *given.repeated(count), pose).float()
        latent, features = given.repeated(2 * count)
        keep = torch.arange(2 * count, device=x_t.device) < count
        joined = self.model(
            torch.cat([x_t, x_t]), torch.cat([t, t]), latent, features, torch.cat([pose, pose]), keep, keep
        )
        cond, uncond = joined.float().chunk(2)
        return classifier_free_guidance(uncond, cond, scale)

    @torch.no_grad()
    def __call__(
        self,
        rgb: Tensor,
        pose: Tensor,
        *,
        generator: torch.Generator | Sequence[torch.Generator],
        steps: int = 50,
        scale: float = 3.0,
        batch: int = 16,
        progress: bool = False,
    ) -> Tensor:
        """Draw views of the object in a picture.

        Args:
            rgb: the condition, in [0, 1], over white, shape ``[3, h, w]``, or one for each view, ``[views, 3, h, w]``.
            pose: of each view relative to it, shape ``[views, 4]``.
            generator: of the initial noise, on the CPU; or one for each view, whose draw then depends on no other.
            steps: of the scheduler.
            scale: of classifier-free guidance; 1 is purely conditional.
            batch: views at a time.
            progress: show a bar.

        Returns:
            In [0, 1], shape ``[views, 3, size, size]``.
        """
        from tqdm import tqdm

        given, shape = self.look(rgb), self.space.shape
        if isinstance(generator, torch.Generator):
            noise = torch.randn(len(pose), *shape, generator=generator)
        else:
            noise = torch.stack([torch.randn(shape, generator=g) for g in generator])
        views = []
        bar = tqdm(total=-(-len(pose) // batch) * steps, desc="drawing views", disable=not progress)
        for start in range(0, len(pose), batch):
            x, part = (value[start : start + batch].to(self.device) for value in (noise, pose))
            shown = given.part(start, start + batch)
            # Schedulers keep a state of their own while they step.
            scheduler = type(self.scheduler).from_config(self.scheduler.config)
            scheduler.set_timesteps(steps)
            x = x * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                times = torch.full((len(x),), int(t), device=self.device)
                output = self._predict(scheduler.scale_model_input(x, t), times, shown, part, scale)
                x = scheduler.step(output, t, x).prev_sample
                bar.update()
            views.append(self.space.decode(x).clamp(0, 1))
        bar.close()
        return torch.cat(views)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write a folder in the diffusers layout, with ``conditioning`` beside ``unet``.

        Args:
            folder: made if need be; its files are replaced.
            dtype: of the weights, for example ``torch.float16``; by default as they are.
        """
        if dtype is not None:
            model, encoder = copy.deepcopy(self.model).to(dtype), copy.deepcopy(self.encoder.model).to(dtype)
            vae = self.vae and copy.deepcopy(self.vae).to(dtype)
            return replace(self, model=model, encoder=replace(self.encoder, model=encoder), vae=vae).save(
                folder
            )
        folder = Path(folder)
        self.model.unet.save_pretrained(folder / "unet")
        self.scheduler.save_pretrained(folder / "scheduler")
        self.encoder.save(folder / "image_encoder")
        if self.vae is not None:
            self.vae.save_pretrained(folder / "vae")
        for path in folder.glob("*/*config.json"):  # diffusers writes where a part was loaded from
            said = json.loads(path.read_text())
            if said.pop("_name_or_path", None) is not None:
                path.write_text(json.dumps(said, indent=2) + "\n")
        conditioning, maps = folder / "conditioning", self.model.amalgamation
        conditioning.mkdir(exist_ok=True)
        token, turn = self.model.token, self.model.turn
        said = {
            "norm": token is None or isinstance(token.norm, nn.LayerNorm),
            "amalgamation": maps is not None,
            "layers": list(self.encoder.layers),
            "fourth": self.fourth,
            "offset": self.offset,
        }
        if turn is not None:
            said["turn"] = asdict(turn.options)
        (conditioning / "config.json").write_text(json.dumps(said, indent=2))
        tensors = {
            f"{name}.{key}": value
            for name, part in conditioning_of(self.model).items()
            for key, value in part.state_dict().items()
        }
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, conditioning / "model.safetensors"
        )
        return folder

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        fourth: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> NovelViewPipeline:
        """Load a folder that ``save`` wrote, or a published Zero-1-to-3 in either known layout.

        Args:
            folder: in the diffusers layout; safetensors only, nothing is fetched.
            fourth: the pose's fourth number, ``distance``, or ``polar`` for Stable-Zero123; None is what the folder says, and
                for a published one what ``fourth_of`` makes of its name.
            device: where it lies.
            dtype: what the UNet and the VAE compute in.

        Raises:
            ValueError: the folder holds no such model, in one line.
        """
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

        folder = Path(folder)
        said, tensors = read_conditioning(folder)
        if fourth is not None and fourth not in FOURTH:
            raise ValueError(f"fourth must be one of {', '.join(FOURTH)}, got {fourth!r}")
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, **precision(dtype)}
        try:
            unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **options)
            vae = None
            if (folder / "vae").is_dir():
                vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **options)
            scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"could not load the novel-view model in {folder} (safetensors in the diffusers layout): {first_line(error)}"
            ) from error
        encoder = load_encoder(folder / "image_encoder", layers=said["layers"], device=device)
        maps = {"map_width": encoder.map_width, "grid": encoder.grid} if said["amalgamation"] else {}
        turn = turn_options(said, folder)
        model = build(
            unet,
            token_width=encoder.token_width,
            norm=said["norm"],
            turn=turn,
            layer_widths=encoder.map_widths,
            **({"grid": encoder.grid} | maps),
        )
        try:
            take_conditioning(model, tensors)
        except RuntimeError as error:
            raise ValueError(
                f"the conditioning in {folder} does not fit its encoder and UNet: {' '.join(str(error).split())[:200]}"
            ) from error
        model.to(device).eval().requires_grad_(False)
        if vae is not None:
            vae.to(device).eval().requires_grad_(False)
        return cls(
            model, encoder, scheduler, vae, fourth or said.get("fourth") or fourth_of(folder), folder,
            float(said.get("offset", 0.0)),
        )  # fmt: skip


def take_conditioning(model: NovelView, tensors: Mapping[str, Tensor]) -> None:
    """Give a model the conditioning's weights.

    Raises:
        RuntimeError: they do not fit.
    """
    for name, part in conditioning_of(model).items():
        part.load_state_dict(
            {key.removeprefix(f"{name}."): v for key, v in tensors.items() if key.startswith(f"{name}.")}
        )


def conditioning_of(model: NovelView) -> dict[str, nn.Module]:
    """The parts of a model's conditioning by the names that they are saved under."""
    parts = {"token": model.token, "amalgamation": model.amalgamation, "turn": model.turn}
    return {name: part for name, part in parts.items() if part is not None}


def turn_options(said: Mapping[str, Any], folder: Path) -> TurnOptions | None:
    """Read a folder's options of the rotated code, None where it has none.

    Raises:
        ValueError: it says something that this version does not know.
    """
    found = said.get("turn")
    if found is None:
        return None
    try:
        return TurnOptions(**{**found, "pairs": tuple(found["pairs"])})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"the conditioning in {folder} says of its code what is not known: {error}"
        ) from error


def fourth_of(folder: Path) -> str:
    """Guess the pose's fourth number of a published folder: ``polar`` for Stable-Zero123, else ``distance``.

    Nothing in such a folder says it, only its name, that of its repository in the Hub's cache, or the one that its
    ``model_index.json`` gives.
    """
    names = [*folder.resolve().parts[-3:]]
    index = folder / "model_index.json"
    if index.exists():
        names.append(str(json.loads(index.read_text()).get("_name_or_path", "")))
    stable = any("stable-zero123" in name.lower().replace("_", "-") for name in names)
    log.info(
        "%s is treated as %s, from its name; set reference.fourth=%s if it is not",
        folder.name, *(("Stable-Zero123", "distance") if stable else ("a Zero-1-to-3", "polar")),
    )  # fmt: skip
    return "polar" if stable else "distance"


def read_conditioning(folder: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """Read a folder's conditioning settings, and its weights under this library's names; a published one lacks ``fourth``."""
    from safetensors import SafetensorError

    try:
        if (folder / "conditioning").is_dir():
            said = json.loads((folder / "conditioning" / "config.json").read_text())
            return said, load_file(folder / "conditioning" / "model.safetensors")
        for place, name in PUBLISHED.items():
            if (folder / place).is_dir():
                (path,) = (folder / place).glob("*.safetensors")
                tensors = {
                    key.replace(f"{name}.", "token.projection.", 1): v for key, v in load_file(path).items()
                }
                return {"norm": False, "amalgamation": False, "layers": []}, tensors
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"could not read the conditioning in {folder}; only safetensors are read, so convert an older file with "
            f"distill.convert first ({type(error).__name__}: {error})"
        ) from error
    places = ", ".join(["conditioning", *PUBLISHED])
    raise ValueError(f"expected a novel-view model in {folder}, which has none of the folders {places}")
