"""LoRA files of the user's, put into a prior's weights; read by diffusers, in every layout that its pipelines know."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill.files.atomic import sha256_once
from distill.files.errors import first_line
from distill.files.paths import user_path
from distill.priors import lycoris
from distill.priors.header import shapes_of
from distill.priors.quiet import quiet

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

#: What the names of CLIP's layers start with in files.
CLIP_PREFIX = "text_model."
#: What the layers are called while they are put on.
NAME = "user"
#: What follows a layer's name where its alpha stands.
ALPHA = ".alpha"
_DOWN, _UP = re.compile(r"\b(lora_down|lora_A|down)\b"), re.compile(r"\b(lora_up|lora_B|up)\b")


@dataclass(frozen=True)
class Lora:
    """A LoRA file, and how much of it is taken.

    Attributes:
        path: of the safetensors file.
        weight: its update of the network's weights is multiplied by this.
        sha256: of the file.
    """

    path: Path
    weight: float
    sha256: str

    def describe(self) -> dict[str, Any]:
        """Return an entry for a run's manifest."""
        return {"name": self.path.name, "weight": self.weight, "sha256": self.sha256}


@dataclass(frozen=True)
class Update:
    """Contents of a LoRA file, with the key names of diffusers: prefixed by the component, ``unet.``, ``text_encoder.``.

    Attributes:
        lora: the file.
        pipeline: class of diffusers that knows how it is loaded.
        state: the low-rank matrices; those of a file with alphas are already multiplied by alpha over rank.
        dense: factors of LoHa and LoKr layers by the names of the layers, see ``distill.priors.lycoris``.
        metadata: of the adapter, where the file's head has it; the scale of each layer follows from it then, and is 1
            without it.
    """

    lora: Lora
    pipeline: DiffusionPipeline
    state: dict[str, Any]
    metadata: dict[str, Any] | None
    dense: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def parts(self) -> set[str]:
        """The parts of the pipeline that it changes."""
        return {part_of(name) for name in (*self.state, *self.dense)}

    def without(self, part: str) -> Update:
        """The rest, without one part's tensors."""
        state, dense = (
            {name: x for name, x in own.items() if part_of(name) != part} for own in (self.state, self.dense)
        )
        return replace(self, state=state, dense=dense)


def part_of(name: str) -> str:
    """The part of a pipeline that a tensor's name begins with."""
    return name.partition(".")[0]


def parse(entry: str | Path) -> Lora:
    """Read ``path`` or ``path:weight``; the weight is 1 where it is not said.

    Raises:
        ValueError: there is no such file, it is none of safetensors, or the weight is no number.
    """
    path, weight = user_path(entry), 1.0
    head, colon, tail = str(entry).rpartition(":")
    if colon and _is_number(tail) and not path.exists():
        path, weight = user_path(head), float(tail)
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise ValueError(
            f"the LoRA {path} is pickled, and only safetensors are read; give it as .safetensors"
        )
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(
            f"a LoRA is given as a .safetensors file, or as file:weight with a number, and {str(entry)!r} is neither"
        )
    return Lora(path, weight, sha256_once(path))


def check(lora: Lora) -> None:
    """Check that a file is whole and of a kind that is read, by its head.

    Raises:
        ValueError: as said, in one line.
    """
    names = list(shapes_of(lora.path))
    try:
        lycoris.check_kind(names)
    except ValueError as error:
        raise ValueError(f"the LoRA {lora.path} cannot be put on a prior: {error}") from error


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read(lora: Lora, pipeline: DiffusionPipeline, component: str, config: Any) -> Update:
    """A file's tensors in the names of diffusers.

    Args:
        lora: the file.
        pipeline: class of diffusers that knows the layouts.
        component: the denoiser's name in the pipeline, which names without a part belong to.
        config: of the denoiser; some layouts count its blocks.

    Raises:
        ValueError: the pipeline takes no LoRA, or the file is none for it.
    """
    if not hasattr(pipeline, "lora_state_dict"):
        raise ValueError(
            f"diffusers puts no LoRA on priors of the kind {pipeline.__name__}; leave out prior_options.loras"
        )
    try:
        with safe_open(lora.path, "pt") as file:
            names = list(file.keys())
            products = any(lycoris.FACTORS.search(name) for name in names)
            if products and component != "unet":
                raise ValueError("it is a LoHa or LoKr, which are read for UNets only")
            told = any(name.endswith(ALPHA) for name in names)
            if told and "lora_adapter_metadata" in (file.metadata() or {}):
                raise ValueError("it gives its alphas twice, as tensors and in its head")
            tensors = {name: file.get_tensor(name) for name in names} if told or products else {}
        tensors, factors = lycoris.taken(tensors) if products else (tensors, [])
        tensors = scaled(tensors) if tensors else {}
        with quiet():
            state, *_, metadata = pipeline.lora_state_dict(
                tensors or str(lora.path),
                return_alphas=True,
                return_lora_metadata=True,
                unet_config=config,
                use_safetensors=True,
                local_files_only=True,
            )
    except (SafetensorError, OSError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise _unfit(lora, pipeline, error) from error
    state = {
        name: value for name, value in state.items() if not name.endswith(ALPHA)
    }  # those are in B already
    state, dense = lycoris.placed(state, factors)
    known = set(pipeline._lora_loadable_modules)
    if not known & {
        part_of(name) for name in (*state, *dense)
    }:  # as save_lora_adapter of a network writes it
        state = {f"{component}.{name}": value for name, value in state.items()}
        metadata = metadata and {f"{component}.{name}": value for name, value in metadata.items()}
    strange = [name for name in state if "lora" not in name or part_of(name) not in known]
    strange += [name for name in dense if part_of(name) not in known]
    if strange or not (state or dense):
        raise _unfit(lora, pipeline, f"{len(strange)} of its {len(state) + len(dense)} tensors are no LoRA's")
    if len(dense) != len(factors):
        raise _unfit(
            lora, pipeline, f"{len(factors) - len(dense)} of its {len(factors)} layers have no place"
        )
    return Update(lora, pipeline, state, metadata, dense)


def scaled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    r"""Multiply each layer's B by its own alpha over its own rank, and set that alpha to the rank.

    Diffusers and peft tell which alpha is whose by the commonest alpha and the commonest rank of a file, and mix layers
    up where both differ. After this every layer's scale is 1, whatever they make of it.

    Args:
        tensors: a file's, in any layout whose alpha stands beside A, ``[rank, ...]``, and B: ``layer.alpha``,
            ``layer.lora_down.weight``, ``layer.lora_up.weight``; or ``lora_A``, ``lora_B``.

    Raises:
        ValueError: an alpha is no single number.
    """
    found = dict(tensors)
    for name, alpha in tensors.items():
        if not name.endswith(ALPHA):
            continue
        layer = name.removesuffix(ALPHA) + "."
        own = [other for other in tensors if other.startswith(layer) and "lora" in other.removeprefix(layer)]
        downs = [other for other in own if _DOWN.search(other.removeprefix(layer))]
        if not downs or alpha.numel() != 1:
            raise ValueError(f"{name} belongs to no low-rank pair, or is no single number")
        rank = tensors[downs[0]].shape[0]
        for up in (other for other in own if _UP.search(other.removeprefix(layer))):
            found[up] = tensors[up].float() * (alpha.item() / rank)
        found[name] = torch.tensor(float(rank))
    return found


def check_layers(update: Update, part: str, layers: Collection[str]) -> None:
    """Check that each layer of one part that a file changes is there, before that part is.

    Args:
        update: what a file holds.
        part: of the pipeline, such as ``unet``.
        layers: names of the part's modules.

    Raises:
        ValueError: the file does not fit.
    """
    own = [name.removeprefix(f"{part}.") for name in update.state if part_of(name) == part]
    found = [name for name in own if re.split(r"\.lora[_.]", name)[0] in layers]
    if len(found) != len(own):
        raise _unfit(
            update.lora,
            update.pipeline,
            f"{len(found)} of its {len(own)} tensors have a place in the {part}",
        )


def put_on(module: ModelMixin, part: str, update: Update) -> None:
    r"""Add a LoRA's update to the weights of one part of a pipeline; nothing of it is left beside them.

    .. math:: W \leftarrow W + w \frac{\alpha}{r} B A

    Args:
        module: the part.
        part: its name in the pipeline.
        update: what a file holds; nothing of it need be this part's.

    Raises:
        ValueError: the file does not fit.
    """
    add_dense(module, part, update)
    own = [name for name in update.state if part_of(name) == part]
    if not own:
        return
    if part.startswith("text_encoder"):
        load = partial(update.pipeline.load_lora_into_text_encoder, text_encoder=module)
    else:
        load = module.load_lora_adapter
    given = {"network_alphas": None, "metadata": update.metadata, "adapter_name": NAME}
    try:
        with quiet():
            load(update.state, prefix=part, **given)
    except Exception as error:  # what peft fails with differs between its versions
        raise _unfit(update.lora, update.pipeline, error) from error
    loaded = [name for name, _ in module.named_parameters() if f".{NAME}." in name]
    if len(loaded) != len(own):
        raise _unfit(
            update.lora,
            update.pipeline,
            f"{len(loaded)} of its {len(own)} tensors have a place in the {part}",
        )
    fuse(module, update.lora.weight, plain=not update.metadata)


@torch.no_grad()
def add_dense(module: ModelMixin, part: str, update: Update) -> None:
    r"""Add LoHa's and LoKr's products to the weights of one part, :math:`W \leftarrow W + w \Delta W`.

    Raises:
        ValueError: a layer is not there, or has another shape.
    """
    for name, factors in update.dense.items():
        if part_of(name) != part:
            continue
        path = name.removeprefix(f"{part}.")
        if path.startswith(CLIP_PREFIX) and not hasattr(module, CLIP_PREFIX[:-1]):
            path = path.removeprefix(CLIP_PREFIX)  # as transformers names it since 5.6
        try:
            weight = module.get_submodule(path).weight
            made = lycoris.dense(factors, weight.shape)
        except (AttributeError, ValueError) as error:
            raise _unfit(update.lora, update.pipeline, f"{path}: {error}") from error
        weight.copy_(weight.float() + update.lora.weight * made.to(weight.device))


def fuse(module: ModelMixin, weight: float, *, plain: bool) -> None:
    """Add the adapters on a module to its weights, times a weight, and take them off; ``plain`` ones have a scale of 1."""
    from diffusers.utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        if plain:
            layer.scaling[NAME] = 1.0
        layer.scale_layer(weight)
        layer.merge()
    recurse_remove_peft_layers(module)
    del module.peft_config
    module._hf_peft_config_loaded = False


def _unfit(lora: Lora, pipeline: DiffusionPipeline, reason: object) -> ValueError:
    return ValueError(
        f"the LoRA {lora.path} does not fit this prior, a {pipeline.__name__}: {first_line(reason)[:200]}; give one that was trained on "
        "such a model"
    )
