"""The contracts between the parts: everything that the loop and a run use of a prior, a scene, a loss or a sampler.

Nothing here is inherited from: anything of the right shape fits. ``protocols`` says what each part must do, ``data`` has what passes
between them; both are imported from here.
"""

from distill.contracts.data import Condition, Draw, Embedding, Field, Group, Prompt, Render, Step, View
from distill.contracts.protocols import (
    CameraSampler,
    Conditioner,
    Generator,
    Guidance,
    Learner,
    Prior,
    Renderer,
    Scene,
    ShadedRenderer,
    TimestepSampler,
    Trainable,
    Writer,
)

__all__ = [
    "CameraSampler",
    "Condition",
    "Conditioner",
    "Draw",
    "Embedding",
    "Field",
    "Generator",
    "Group",
    "Guidance",
    "Learner",
    "Prior",
    "Prompt",
    "Render",
    "Renderer",
    "Scene",
    "ShadedRenderer",
    "Step",
    "TimestepSampler",
    "Trainable",
    "View",
    "Writer",
]
