"""Score distillation from its parts, with nothing hidden: shapes a NeRF from a prompt in 400 steps, as many as the default run has.

From the root of the repository:

    python examples/custom_loop.py "a blue chair" chair.glb
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tqdm import tqdm

from distill.conditions.prompts import conditioner, view_words
from distill.contracts import Step
from distill.export.colours import paint_of
from distill.export.files import save_mesh
from distill.export.mesh import extract_mesh
from distill.export.texture import bake_texture
from distill.guidance.sds import sds
from distill.priors import load_prior
from distill.renderers.nerf import HashGridScene
from distill.samplers.cameras import ranges
from distill.samplers.timesteps import annealed


def main(prompt: str, path: Path, iterations: int = 400, batch: int = 4) -> None:
    generator = torch.Generator().manual_seed(0)
    prior = load_prior("embedded")
    condition = conditioner(prior, prompt, views=view_words("auto", "embedded"))
    scene = HashGridScene(seed=generator)
    optimiser = torch.optim.Adam(scene.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-15)
    cameras, timesteps = ranges(), annealed(prior)

    for step in tqdm(range(iterations)):
        progress = step / iterations
        scene.update(Step(step, progress), optimiser, generator)
        views = cameras(progress, batch, generator)
        x = prior.encode(scene.render(views, 64, 64, generator=generator).rgb.movedim(-1, 1))
        t = timesteps(progress, batch, generator)
        noise = torch.randn(x.shape, generator=generator)
        grad = sds(prior, x.detach(), condition(views, Step(step, progress)), t, noise, scale=2.0)
        optimiser.zero_grad()
        x.backward(grad / batch)
        optimiser.step()

    mesh = extract_mesh(scene.query, scene.render)
    save_mesh(bake_texture(mesh, paint_of(scene.query, scene.render)), path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit('usage: python examples/custom_loop.py "a blue chair" chair.glb')
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except ValueError as error:
        sys.exit(f"error: {error}")
