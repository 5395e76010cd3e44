"""What a kind of pipeline has to say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distill.contracts import Embedding


@dataclass(frozen=True)
class Family:
    """What one kind of pipeline does that others do not.

    Attributes:
        network: class of the denoiser.
        component: the denoiser's name in the folder.
        embed: ``(pipeline, prompts) -> named tensors``, the batch first, with the pipeline's own text encoders; the
            empty prompt is what the pipeline takes for none.
        predict: ``(network, x_t, time, embedding) -> output``; what is beyond the channels of ``x_t`` is cut off.
        clock: the module in the network that embeds the time, with a layer ``linear_2``; adapters add a camera there.
        blank: ``network -> named tensors`` of one prompt, zeros, of the shapes that the published models are told.
        controls: whether diffusers' ``ControlNetModel`` is made for its network.
        weighted: ``embed`` for prompts with weights and of any length, where there is one: a list of states, each as
            long as its prompt.
    """

    network: str
    component: str
    embed: Callable[[Any, Sequence[str]], dict[str, Tensor]]
    predict: Callable[[Any, Tensor, Tensor, Embedding], Tensor]
    clock: str
    blank: Callable[[Any], dict[str, Tensor]]
    controls: bool = False
    weighted: Callable[[Any, Sequence[str]], dict[str, Any]] | None = None


def default_options(pipeline: Any) -> dict[str, Any]:
    """What a pipeline tells its ``encode_prompt`` when called with nothing but a prompt."""
    called = inspect.signature(type(pipeline).__call__).parameters
    wanted = inspect.signature(type(pipeline).encode_prompt).parameters
    names = ("max_sequence_length", "clean_caption", "clip_skip", "complex_human_instruction")
    return {name: called[name].default for name in names if name in called and name in wanted}
