"""A trainable copy of a prior that costs a few percent of its memory: LoRA layers and a camera embedding."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.cameras import Cameras
from distill.contracts import Embedding, Prior
from distill.priors.attention import differentiable

if TYPE_CHECKING:
    from diffusers import ModelMixin

NAME = "student"
#: Where a network keeps the handle of its student's hook, so that the next student can remove it.
HOOK = "_student_hook"


class Student:
    """A prior's network with low-rank layers of its own, switched on only while the student is asked.

    Everything else that uses the prior sees it unchanged: there is one model in memory.

    Args:
        prior: its ``trainable`` has a network of diffusers that takes adapters.
        rank: of the low-rank layers.
        alpha: their outputs are scaled by ``alpha / rank``; a whole number.
        targets: endings of the names of the linear layers that get one.
        cameras: also learn from where a picture was taken, added to the time embedding.
        generator: of the initial weights.

    Raises:
        ValueError: the prior has no network that takes adapters, or none of ``targets`` is in it.

    Source: Hu et al. 2021, arXiv:2106.09685; Wang et al. 2023 (ProlificDreamer), arXiv:2305.16213.
    """

    def __init__(
        self,
        prior: Prior,
        *,
        rank: int,
        alpha: int,
        targets: Sequence[str],
        cameras: bool,
        generator: torch.Generator,
    ) -> None:
        from peft import LoraConfig
        from peft.tuners.tuners_utils import BaseTunerLayer

        trainable = prior.trainable
        network: ModelMixin = trainable and trainable.network
        if trainable is None or not hasattr(network, "add_adapter"):
            none = "this prior has none"
            if trainable is not None:
                none = f"this prior's, {type(network).__name__}, takes none in diffusers"
            raise ValueError(
                f"vsd adds LoRA layers to a prior's network, and {none}; use a diffusers prior that does, or guidance=asd, "
                "which needs no training"
            )
        if rank < 1:
            raise ValueError(f"guidance.rank must be at least 1, got {rank}")
        names = [name for name, _ in network.named_modules()]
        missing = [target for target in targets if not any(name.endswith(f".{target}") for name in names)]
        if missing or not targets:
            raise ValueError(
                f"vsd found no layer named {', '.join(missing)} in the prior's network to add LoRA to; "
                "name its attention layers with guidance.targets"
            )
        if NAME in getattr(network, "peft_config", {}):
            network.delete_adapters(NAME)
        if old := getattr(network, HOOK, None):
            old.remove()
        config = LoraConfig(
            r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets)
        )
        with _seeded(generator):
            network.add_adapter(config, adapter_name=NAME)
            self.teacher, self.network, self.device = trainable, network, prior.device
            self.views = prior.views
            self.layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
            for parameter in self.low_rank():
                parameter.data = parameter.data.float()
            clock = network.get_submodule(trainable.clock) if cameras else None
            width = clock.linear_2.out_features if clock else 0
            self.camera = camera_embedding(width, prior.device) if cameras else None
        self._shift: Tensor | None = None
        if clock is not None:
            setattr(network, HOOK, clock.register_forward_hook(self._add_camera))
        self._switch(False)

    def low_rank(self) -> list[nn.Parameter]:
        """The LoRA layers' weights."""
        return [p for name, p in self.network.named_parameters() if f".{NAME}." in name]

    def trainable(self) -> list[nn.Parameter]:
        """Return all trained parameters."""
        return [*self.low_rank(), *(self.camera.parameters() if self.camera else [])]

    def predict_noise(
        self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None, keep: Tensor | None = None
    ) -> Tensor:
        """Predict the noise in ``x_t``; ``keep``, shape ``[batch]``, is 0 where the camera is to be unknown."""
        if self.camera is not None and cameras is not None:
            shift = self.camera(cameras.c2w.flatten(1).float())
            self._shift = shift if keep is None else shift * keep[:, None]
        self._switch(True)
        try:
            with differentiable() if torch.is_grad_enabled() else nullcontext():
                return self.teacher.forward(x_t, t, cond, cameras)
        finally:
            self._switch(False)
            self._shift = None

    def save(self, folder: Path) -> None:
        """Write the LoRA as safetensors that ``load_lora_adapter`` of diffusers reads."""
        self.network.save_lora_adapter(folder, adapter_name=NAME)

    def load(self, path: Path) -> None:
        """Take the LoRA's weights from a safetensors file, or from the one that ``save`` wrote to a folder.

        Raises:
            ValueError: it cannot be read, or is of another network, rank or set of layers.
        """
        file = path / "pytorch_lora_weights.safetensors" if path.is_dir() else path
        try:
            saved = load_file(file, device=str(self.device))
            with safe_open(file, "pt") as opened:
                said = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"guidance.lora must be a LoRA in a safetensors file, but {file} cannot be read: {error}"
            ) from error
        own = {
            name.replace(f".{NAME}.", "."): p
            for name, p in self.network.named_parameters()
            if f".{NAME}." in name
        }
        saved = {name.removeprefix("unet.").removeprefix("transformer."): p for name, p in saved.items()}
        misfits = [name for name in own if name not in saved or saved[name].shape != own[name].shape]
        if misfits or len(saved) != len(own):
            raise ValueError(
                f"{file} is a LoRA of another prior, rank or set of layers: {len(misfits)} of the "
                f"{len(own)} tensors wanted here do not fit ({len(saved)} are in it); give the prior it was trained "
                "on, with its guidance.rank and guidance.targets"
            )
        alpha = self.network.peft_config[NAME].lora_alpha
        if said.get("lora_alpha", alpha) != alpha:
            raise ValueError(
                f"{file} was trained with guidance.alpha={said['lora_alpha']}, and this run has {alpha}; give the same"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(saved[name])

    def state_dict(self) -> dict[str, Any]:
        return {
            "camera": dict(self.camera.state_dict()) if self.camera else {},
            "low_rank": [parameter.detach() for parameter in self.low_rank()],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        own = self.low_rank()
        if [list(p.shape) for p in saved["low_rank"]] != [list(p.shape) for p in own]:
            raise ValueError(
                "the checkpoint's LoRA layers do not fit this prior; resume with the same prior=, "
                "guidance.rank and guidance.targets"
            )
        with torch.no_grad():
            for parameter, value in zip(own, saved["low_rank"], strict=True):
                parameter.copy_(value)
        if self.camera:
            self.camera.load_state_dict(saved["camera"])

    def _switch(self, on: bool) -> None:
        for layer in self.layers:
            layer.enable_adapters(on)
        # peft takes the gradient away with the adapter; it is wanted again at the optimiser's step.
        for parameter in self.low_rank():
            parameter.requires_grad_(True)

    def _add_camera(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        shift = self._shift
        if shift is None:
            return output
        if len(shift) < len(output):
            # ImageDream's picture is one more view of each object, whose camera is not known.
            shift = nn.functional.pad(shift.unflatten(0, (-1, self.views)), (0, 0, 0, 1)).flatten(0, 1)
        return output + shift.to(output.dtype)


def camera_embedding(width: int, device: torch.device) -> nn.Sequential:
    """Camera-to-world matrix, 16 numbers, to the time embedding's width; starts at zero."""
    last = nn.Linear(width, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(16, width), nn.SiLU(), last).to(device)


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """Draw initial weights from a generator; layers take theirs from torch's global one."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        yield
