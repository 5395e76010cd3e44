"""The interface of a family of pipelines."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.priors.families.length import Lengths

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Control:
    """Functions that load and call a family's ControlNets.

    Attributes:
        network: their class.
        show: ``(ControlNet, space, pictures) -> shown``: what it is shown of pictures in [0, 1],
            ``[batch, 3, height, width]``, the batch first; ``space`` encodes as the prior does.
        add: ``(ControlNet, network, x_t, time, embedding) -> named values`` that the network is given beside the
            embedding; this one also holds the ControlNet's ``controlnet_cond``, what it is shown, and
            ``conditioning_scale``.
        shared: settings that it must have in common with the network.
        refused: settings that it must not have, and what they make of it.
    """

    network: str
    show: Callable[[Any, Any, Tensor], Tensor]
    add: Callable[[Any, Any, Tensor, Tensor, Mapping[str, Any]], dict[str, Any]]
    shared: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Everything that is specific to one kind of pipeline.

    Attributes:
        network: class of the denoiser.
        component: the denoiser's name in the folder.
        embed: ``(pipeline, prompts) -> named tensors``, the batch first, with the pipeline's own text encoders; the
            empty prompt is what the pipeline takes for none.
        predict: ``(network, x_t, time, embedding) -> output``, the embedding with what a ControlNet adds; what is beyond
            the channels of ``x_t`` is cut off.
        clock: the module in the network that embeds the time, with a layer ``linear_2``; adapters add a camera there.
        blank: ``network -> named tensors`` of one prompt, zeros, of the shapes that the published models are told.
        control: how its ControlNets are called, where diffusers has some.
        preset: of ``distill/conf/preset``, chosen where none is named.
        patch: side of the patches that the denoiser makes of its input.
        lengths: how many tokens of a prompt each of its text encoders takes.
        channels_last: whether the denoiser is faster with that memory format, as convolutions are.
        last: the denoiser's last modules, which compute in float32, see ``distill.priors.dtypes.keep_last``.
        half: its precision on a GPU where none is asked for: float16, which rounds eight times finer than bfloat16, where the
            published models are run in it.
        weighted: ``embed`` for prompts with weights and of any length, where there is one: a list of states, each as
            long as its prompt.
    """

    network: str
    component: str
    embed: Callable[[Any, Sequence[str]], dict[str, Tensor]]
    predict: Callable[[Any, Tensor, Tensor, Mapping[str, Any]], Tensor]
    clock: str
    blank: Callable[[Any], dict[str, Tensor]]
    control: Control | None = None
    weighted: Callable[[Any, Sequence[str]], dict[str, Any]] | None = None
    preset: str = "none"
    patch: int = 1
    lengths: Lengths = field(default_factory=lambda: {"tokenizer": 0})
    channels_last: bool = False
    last: tuple[str, ...] = ("norm_out", "proj_out")
    half: torch.dtype = torch.bfloat16


def default_options(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """Return the arguments that a pipeline passes to ``encode_prompt`` by default."""
    called = inspect.signature(type(pipeline).__call__).parameters
    wanted = inspect.signature(type(pipeline).encode_prompt).parameters
    names = ("max_sequence_length", "clean_caption", "clip_skip", "complex_human_instruction")
    return {name: called[name].default for name in names if name in called and name in wanted}
