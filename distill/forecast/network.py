"""Forecast a step's memory and arithmetic from the networks' configurations, before any weights are loaded.

Networks are built without storage (torch's meta device) and called as a step calls them, while the bytes that live at the
same time and the arithmetic are counted. Attention is counted as if it kept its weights, which fused kernels do not, so that
memory is rather too much; what a driver, a caching allocator or a convolution's workspace takes on top is not in it.
"""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from distill.cameras import Cameras
from distill.contracts import Condition, Embedding, Guidance, Step
from distill.priors.autoencoder import find_vae
from distill.priors.control import CONTROL, ControlNet, find_kind
from distill.priors.diffusion import DiffusionPrior
from distill.priors.draft import PART, Draft, show
from distill.priors.load import checkpoint, family_of, mode_of, read_scheduler, space_of
from distill.priors.multi_view.attention import COUNT, views_of
from distill.priors.multi_view.image_prompt import LATENT, TOKENS, arrange
from distill.priors.multi_view.published import build
from distill.priors.schedule import read_schedule
from distill.priors.source import Source
from distill.priors.whole import named, network_settings

if TYPE_CHECKING:
    from collections.abc import Sequence


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made while it is on: those alive, and the most that ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {
            id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in given and id(storage) not in self._known:
                    self._made(storage)
        return result

    def _made(self, storage: Any) -> None:
        size, key = storage.nbytes(), id(storage)
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)

        def gone() -> None:
            self._known.discard(key)
            self.alive -= size

        weakref.finalize(storage, gone)


@dataclass
class Counting:
    """A prior that only counts: the pictures in each call of the network, and in each decoding with gradient."""

    rows: list[int] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)
    name = "counting"
    device = torch.device("cpu")
    num_timesteps = 1000
    image_size = 2
    shape = (3, 2, 2)
    latent, words, has_control = False, True, False
    views = 1
    trainable = None

    def embed(self, prompts: list[str]) -> Embedding:
        return {"prompt": torch.zeros(len(prompts), 1)}

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            self.decoded.append(len(x))
        return x

    def show(self, pictures: Tensor) -> Tensor:
        raise ValueError("a prior that only counts has no ControlNet to show a picture to")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.full((len(t), 1, 1, 1), 0.6)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.full((len(t), 1, 1, 1), 0.8)

    def predict_noise(
        self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None
    ) -> Tensor:
        self.rows.append(len(x_t))
        return torch.zeros_like(x_t)

    def describe(self) -> dict[str, Any]:
        return {}


def calls_of(guidance: Guidance, batch: int) -> list[int]:
    """Return how many pictures a loss gives the network in each call for a batch; arguments as for ``counted``."""
    return counted(guidance, batch).rows


def counted(guidance: Guidance, batch: int, *, away: bool = False) -> Counting:
    """Count what a loss asks of a prior for a batch.

    Args:
        guidance: the loss.
        batch: pictures.
        away: count Perp-Neg's further predictions for every picture.
    """
    prior, x = Counting(), torch.zeros(batch, 3, 2, 2)
    roles = ("text", "uncond", "negative", "source", "plain", "away_0", "away_1")
    cond = Condition(
        {role: prior.embed([role] * batch) for role in roles},
        step=Step(progress=0.5, uniform=torch.full((batch,), 0.5)),
        source_x=x,
        away=-torch.ones(batch, 2) if away else None,
    )
    guidance(prior, x, cond, torch.full((batch,), 500), torch.ones_like(x))
    return prior


@dataclass(frozen=True)
class Forecast:
    """Forecast of a step's memory and arithmetic.

    Attributes:
        weights: bytes of the network, the VAE and the ControlNet.
        encoding: bytes that the VAE keeps of a batch until the gradient has come back.
        prediction: bytes of the largest call of the network, on top.
        learning: bytes that a student inside the network keeps, and its own weights; 0 for losses that learn nothing.
        operations: floating-point operations.
        network: of these, the network's own.
        decoding: bytes that the VAE's decoder keeps of a batch for losses that backpropagate through it, else 0.
    """

    weights: int
    encoding: int
    prediction: int
    learning: int
    operations: int
    network: int
    decoding: int = 0

    @property
    def call(self) -> int:
        """Bytes of the largest call: of the network, of its student, or of the VAE's decoder."""
        return max(self.prediction, self.learning, self.decoding)

    @property
    def peak(self) -> int:
        """Bytes at the same time, the scene and its rendering not counted."""
        return self.weights + self.encoding + self.call


def shadow(
    source: Source,
    dtype: torch.dtype,
    image_size: int | None = None,
    *,
    checkpointing: bool = False,
    controlnet: str | None = None,
    vae: str | None = None,
    views: int | None = None,
    ip_mode: str = "auto",
) -> DiffusionPrior:
    """A prior without weights, on the meta device; options as for ``load_prior``.

    Raises:
        ValueError: its folder is not one this library can use, or the ControlNet is not for it.
    """
    import diffusers

    folder = source.folder
    family, index = family_of(folder)

    def empty(part: Path, kind: str, settings: dict[str, Any] | None = None) -> Any:
        settings = settings or json.loads((part / "config.json").read_text())
        with torch.device("meta"):
            shown = settings.get(COUNT)
            made = build(settings) if shown else getattr(diffusers, kind).from_config(settings)
            made.eval().requires_grad_(False)
            return torch.nn.Module.to(
                made, dtype
            )  # diffusers' own would warn of layers that it keeps in float32

    settings = network_settings(source, family)
    network = empty(folder / family.component, family.network, settings)
    together = views_of(settings, views, source.name, controlnet=bool(controlnet))
    pixel = mode_of(ip_mode, source, settings)
    if together > 1:
        arrange(network, settings, together, pixel=pixel)
    if named(index, PART):
        with torch.device("meta"):
            show(network, Draft.bare(folder / PART).to(dtype))
    place = find_vae(vae, source, index).folder if vae else folder / "vae"
    autoencoder = empty(place, index["vae"][1]) if "vae" in index else None
    if checkpointing and autoencoder is not None:
        checkpoint(autoencoder)
    space, patches = space_of(autoencoder, network, family, image_size)
    schedule = read_schedule(read_scheduler(source, index), patches).to(torch.device("meta"))

    told, control = family.blank(network), None
    if count := settings.get(COUNT):
        told[TOKENS] = torch.zeros(1, count, network.config.cross_attention_dim)
        told |= {LATENT: torch.zeros(1, *space.shape)} if pixel else {}
    if controlnet:
        beside, kind = find_kind(controlnet, family)
        control = ControlNet(empty(beside.folder, kind.network), kind, 1.0, beside)

    def text(prompts: Sequence[str]) -> Embedding:
        return {name: value.expand(len(prompts), *value.shape[1:]) for name, value in told.items()}

    prior = DiffusionPrior(
        network, space, text, family, schedule, torch.device("meta"), dtype, source, control=control,
        views=together,
    )  # fmt: skip
    if control:
        told[CONTROL] = prior.show(torch.zeros(1, 3, prior.image_size, prior.image_size, device="meta"))
    return prior


def forecast(
    prior: DiffusionPrior,
    rows: list[int],
    batch: int,
    *,
    rank: int = 0,
    updates: int = 1,
    decodes: bool = False,
) -> Forecast:
    """Count a step of a shadow prior.

    Args:
        prior: of ``shadow``.
        rows: of the network in each call, see ``calls_of``.
        batch: pictures.
        rank: of a student's low-rank layers, 0 for a loss that has none.
        updates: of these layers in a step.
        decodes: whether the loss backpropagates through the decoder.
    """
    control = prior.control.network if prior.control else None
    modules = [module for module in (prior.network, prior.space.vae, control) if module is not None]
    weights = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    image = torch.zeros(batch, 3, prior.image_size, prior.image_size, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as whole, LiveBytes() as live:
        x = prior.encode(image)
        kept = live.alive
        if prior.control:
            prior.show(image.detach())
        x.backward(torch.zeros_like(x))
        encoding = max(kept, live.peak)
    operations = whole.get_total_flops()
    # Calls of as many pictures cost the same: each size is counted once.
    found = {
        count: _call(prior, x.detach(), count, learns=False) for count in {*rows, *([batch] if rank else [])}
    }
    network, largest = (
        sum(found[count][0] for count in rows),
        max((found[count][1] for count in rows), default=0),
    )
    learning = 0
    if rank:
        # Its weights, their gradients and Adam's two averages, in float32.
        learning = 16 * _low_rank(prior, rank)
        if updates:
            counted, held = _call(prior, x.detach(), batch, learns=True)
            network += updates * counted  # there and back
            learning += held
    decoding = 0
    if decodes and prior.latent:
        extra, decoding = _decoding(prior, x.detach())
        operations += extra
    return Forecast(weights, encoding, largest, learning, operations + network, network, decoding)


def _decoding(prior: DiffusionPrior, x: Tensor) -> tuple[int, int]:
    """Operations and bytes of decoding a batch with gradient, and a fixed target without."""
    x = x.requires_grad_()
    with FlopCounterMode(display=False) as counter, LiveBytes() as live:
        with torch.no_grad():
            prior.decode(x)
        image = prior.decode(x)
        image.backward(torch.zeros_like(image))
    return counter.get_total_flops(), live.peak


def _call(prior: DiffusionPrior, x: Tensor, rows: int, learns: bool) -> tuple[int, int]:
    """Operations and bytes of a call of the network, with the way back where something in it learns."""
    x_t = torch.zeros(rows, *x.shape[1:], device="meta", requires_grad=learns)
    cond = {name: value.to("meta") for name, value in prior.embed([""] * rows).items()}
    t = torch.zeros(rows, dtype=torch.long, device="meta")
    with torch.set_grad_enabled(learns), FlopCounterMode(display=False) as counter, LiveBytes() as live:
        found = prior.predict(x_t, t, cond)
        if learns:
            found.backward(torch.zeros_like(found))
    return counter.get_total_flops(), live.peak


def _low_rank(prior: DiffusionPrior, rank: int) -> int:
    """Parameters of low-rank layers on every attention's projections."""
    endings = ("to_q", "to_k", "to_v", "to_out.0")
    layers = [module for name, module in prior.network.named_modules() if name.endswith(endings)]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def speed_of(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of large matrix products, measured for half a second."""
    import time

    size = 2048 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=dtype)

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    a @ a
    start, count = wait(), 0
    while wait() - start < 0.5:
        a @ a
        count += 1
    return 2 * size**3 * count / (wait() - start)
