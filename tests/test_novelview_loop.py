"""The loop of a novel-view training by numbers: what its checkpoints keep beside the model."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distill.lab.novel_view import loop
from distill.lab.novel_view.config import TrainConfig
from distill.lab.novel_view.pairs import Pair
from distill.lab.novel_view.progress import Progress


class Blank:
    """Pairs of black pictures, as many as one likes."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, number: int) -> tuple[int, Pair, None]:
        picture = torch.zeros(3, 8, 8)
        return number, Pair(picture, picture, torch.ones(4), "black", (0, 1)), None


def trained(folder: Path, updates: int, *, broken: int | None = None) -> dict[str, Any]:
    """Go on for some updates in a folder, with a scale that doubles after two clean updates; returns the scaler's state."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    # fp16 has a scaler on a GPU alone; one for the CPU counts in the same way.
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    model = nn.Linear(4, 1)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    state = Progress(model, optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0))
    config = TrainConfig(iterations=100, batch=1, accumulate=1, clip_norm=0.0, workers=0, validate_every=0)
    stop = threading.Event()

    def loss(model: nn.Module, batch: Any, done: float) -> torch.Tensor:
        if state.update + 1 == last:
            stop.set()
        overflows = torch.inf if state.update == broken else 1.0
        found: torch.Tensor = model(batch.pose).square().mean() * overflows
        return found

    samples: Any = Blank()
    course = loop.Course("a stage", config, folder, samples, loss, lambda now: {})
    loop.resume(course, state, accelerator)
    last = state.update + updates
    loop.run(course, state, accelerator, stop)
    assert state.update == last
    return dict(accelerator.scaler.state_dict())


@pytest.mark.parametrize("parts", [[5], [3, 2], [1, 1, 2, 1]])
def test_the_scale_of_gradients_goes_on_where_it_was(parts: list[int], tmp_path: Path) -> None:
    found = [trained(tmp_path, updates) for updates in parts][-1]
    # Doubled after the second and the fourth update, and one clean update since.
    assert (found["scale"], found["_growth_tracker"]) == (4.0 * 2**2, 1)


def test_a_scale_that_was_halved_stays_so(tmp_path: Path) -> None:
    assert trained(tmp_path, 2, broken=1)["scale"] == 2.0
    found = trained(tmp_path, 1)
    assert (found["scale"], found["_growth_tracker"]) == (2.0, 1)
