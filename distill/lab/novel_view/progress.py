"""State of a novel-view training: what is trained, its rate, and the average of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distill.lab.novel_view.config import TrainConfig
from distill.priors.novel_view.model import NovelView

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


def make_optimiser(
    model: NovelView, config: TrainConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW, the conditioning at its own rate, and the rate's rise and cosine fall."""
    told = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith("unet.")]
    groups = [
        {"params": list(model.unet.parameters()), "lr": config.learning_rate},
        {"params": told, "lr": config.learning_rate * config.token_rate},
    ]
    return scheduled(groups, config)


def scheduled(
    groups: list[dict[str, Any]], config: TrainConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW over groups of parameters, with the rate's rise and cosine fall."""
    from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=config.weight_decay, fused=True)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimiser, config.warmup, config.iterations, min_lr_rate=config.final_rate / config.learning_rate
    )
    return optimiser, schedule


@dataclass
class Progress:
    """State of a training run."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    average: EMAModel | None = None
    update: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": dict(self.model.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "update": self.update,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(saved["model"])
        except RuntimeError as error:
            raise ValueError(
                "the checkpoint is of another network; resume with the same init=, encoder= and conditioning"
            ) from error
        self.optimiser.load_state_dict(saved["optimiser"])
        self.schedule.load_state_dict(saved["schedule"])
        if self.average:
            self.average.load_state_dict(saved["average"])
        self.update = saved["update"]


@contextmanager
def averaged(state: Progress) -> Iterator[None]:
    """The averaged weights, for as long as the context lasts."""
    if state.average is None:
        yield
        return
    state.average.store(state.model.parameters())
    state.average.copy_to(state.model.parameters())
    try:
        yield
    finally:
        state.average.restore(state.model.parameters())
