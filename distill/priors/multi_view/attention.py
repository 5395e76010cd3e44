"""A UNet of diffusers that several views of one object go through together.

Source: Shi et al. 2023 (MVDream), arXiv:2308.16512, Sec. 3.1: self-attention runs over the tokens of all views, and an embedding of
each camera is added to the time's. All else, cross-attention among it, sees one view at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from distill.priors.multi_view.camera import NUMBERS

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

#: What a UNet calls the numbers of the cameras, and what an embedding calls them that holds them.
CAMERA = "class_labels"
#: How many views the published models take.
VIEWS = 4
#: Settings of a UNet that adds what two layers make of a camera's numbers to its time embedding.
TOLD = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": NUMBERS}
#: The setting of a UNet that says how many tokens it is shown of a picture; ImageDream's alone has it.
COUNT = "image_prompt_tokens"
#: How the names of self-attentions' processors end.
OWN = ".attn1.processor"


class Folded:
    """An attention processor over the tokens of all views of an object: those of consecutive rows follow one another.

    Args:
        plain: the processor that computes the attention.
        views: rows of one object.
    """

    def __init__(self, plain: Any, views: int) -> None:
        self.plain, self.views = plain, views

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend; ``hidden_states`` has the shape ``[batch, tokens, width]``, and so has the result."""
        assert encoder_hidden_states is None and attention_mask is None
        rows, tokens, width = hidden_states.shape
        together = hidden_states.reshape(rows // self.views, self.views * tokens, width)
        found: Tensor = self.plain(attn, together, temb=temb)
        return found.reshape(rows, tokens, width)


def takes_cameras(settings: Mapping[str, Any]) -> bool:
    """Tell from a network's settings whether it is given cameras."""
    return all(settings.get(name) == value for name, value in TOLD.items())


def views_of(settings: Mapping[str, Any], wanted: int | None, name: str, *, controlnet: bool = False) -> int:
    """Return how many views a network takes together: as many as wanted, by default four where it is given cameras.

    Args:
        settings: of the network.
        wanted: ``prior_options.views``; with 1, a multi-view prior is one of single pictures.
        name: of the prior, for the error.
        controlnet: whether one is beside it, which is shown one picture at a time.

    Raises:
        ValueError: fewer than one are wanted, or several of a network that is given no cameras, or beside a ControlNet; or one of
            ImageDream's.
    """
    if wanted is not None and wanted < 1:
        raise ValueError(f"prior_options.views must be at least 1, got {wanted}")
    if takes_cameras(settings):
        views = VIEWS if wanted is None else wanted
        if views == 1 and settings.get(COUNT):
            raise ValueError(
                f"prior_options.views=1 is for a prior that also takes single pictures, and {name} is ImageDream, which takes views "
                "together with a picture; leave it out"
            )
        if controlnet and views > 1:
            raise ValueError(
                f"prior_options.controlnet is made for single pictures, and {name} takes {views} views together; leave it out, or "
                "add prior_options.views=1"
            )
        return views
    if wanted not in (None, 1):
        raise ValueError(
            f"prior_options.views={wanted} is for a multi-view prior, whose network is given cameras, and {name} is none; leave it "
            "out"
        )
    return 1


def fold(network: UNet2DConditionModel, views: int, *, silence: bool = True) -> None:
    """Let self-attention run over the views of each object, and let a camera of zeros add nothing to the time embedding.

    Args:
        network: takes cameras; is changed.
        views: of an object, in consecutive rows; with 1, attention stays as it is.
        silence: False leaves the embedding of a camera of zeros as the network makes it.

    Raises:
        ValueError: the network has no self-attention that could be folded.
    """
    if silence:
        network.class_embedding.register_forward_hook(silent)
    if views == 1:
        return
    plain = dict(network.attn_processors)
    if not any(name.endswith(OWN) for name in plain):
        raise ValueError(
            "a multi-view prior needs a network with self-attention in transformer blocks, and this one has none"
        )
    network.set_attn_processor(
        {name: Folded(each, views) if name.endswith(OWN) else each for name, each in plain.items()}
    )


def silent(module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
    """Return the embedding of cameras, 0 for those whose numbers are all 0: no camera."""
    return found * given[0].any(dim=-1, keepdim=True)
