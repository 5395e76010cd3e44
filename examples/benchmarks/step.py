"""Measure a training step, part by part, relative to the diffusion model's own evaluations, in one run.

python examples/benchmarks/step.py
measures a step of the default run, in the middle of training. With a prior of realistic size, with random or real weights:

python examples/benchmarks/random_prior.py /tmp/sd15
python examples/benchmarks/step.py --prior /tmp/sd15 --dtype bfloat16 --hold --warm-steps 16 \\
    --guidance sds csd asd vsd --size 64 256 512 --backend all --output step.md

The device is synchronised before and after every part, so outside of a benchmark a step takes no longer.

"network" is timed next to each step under the same load: only the network evaluations of the loss, on the step's own latents and with
the same batch sizes. For losses without trainable parameters these are forward passes. For VSD they are the prior's guided
prediction, the LoRA's prediction, and the forward and backward pass that trains the LoRA; the time of the low-rank layers
counts as the network's. Two ratios are relative to it:

step / network: the whole step, including the VAE, whose input has the size that the prior was trained on.
without VAE / network: without "encode" and "encode back", which do not depend on the renderer or the loss. The target, at most 1.25 for
Stable Diffusion 1.5 with renders of 64 pixels, is for this ratio.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import torch
from measuring import hardware, table
from omegaconf import DictConfig
from one_step import PARTS, RENDER, measure

from distill.devices import pick_device
from distill.renderers.hashgrid import BACKENDS, choose_backend
from distill.run.assembly.prior import open_prior
from distill.run.config.compose import compose_config
from distill.run.config.overrides import as_overrides

#: The table's columns after what was chosen.
COLUMNS = (
    *(part for part in PARTS if part not in RENDER),
    "step / network",
    "without VAE / network",
    "peak GiB",
)


def usable(device: torch.device, backend: str) -> list[str]:
    """Backends of a field; ``all`` is every fast one that runs here.

    Raises:
        ValueError: one that is asked for cannot run here.
    """
    cuda = device.type == "cuda"
    backends = [backend]
    if backend == "all":
        backends = ["fused", "warp", "tinycudann"] if cuda and has_tinycudann() else ["fused", "warp"]
    like = torch.empty(0, device=device)
    return [_resolved(each, like) for each in backends]


def _resolved(backend: str, like: torch.Tensor) -> str:
    """What a scene with one hidden layer does; see ``HashGridScene``."""
    chosen = choose_backend(backend, like)
    return "fused" if chosen == "warp" and backend in ("auto", "fused") else chosen


def has_tinycudann() -> bool:
    """Tell whether it can be imported, which needs a GPU that it was built for."""
    try:
        import tinycudann  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", default="a red mug")
    parser.add_argument("--prior", default="embedded", help="a folder, or a name that `distill priors` lists")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="that the prior computes in",
    )
    parser.add_argument("--guidance", nargs="+", default=["sds"], metavar="LOSS")
    parser.add_argument("--size", nargs="+", type=int, default=[64], metavar="PIXELS", help="as rendered")
    parser.add_argument("--backend", default="auto", choices=("all", *BACKENDS), help="of the field")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, help="pictures a step; by default as `distill` has it")
    parser.add_argument(
        "--hold",
        action="store_true",
        help="leave the scene the blob it begins as; random weights dissolve it",
    )
    parser.add_argument(
        "--warm-steps", type=int, default=150, help="steps before measuring: the scene must be sparse"
    )
    parser.add_argument("--steps", type=int, default=48, help="a multiple of 16 has its share of occupancy")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="any option of `distill`")
    parser.add_argument("--output", type=Path, help="write the table there, too; after each row")
    options = parser.parse_args()
    if min(options.steps, *options.size) < 1 or options.warm_steps < 0:
        parser.error("--steps and --size must be at least 1, and --warm-steps at least 0")
    if options.output and not options.output.parent.is_dir():
        parser.error(f"--output must be a file in an existing folder, got {options.output}")
    return options


def cases(options: argparse.Namespace, device: torch.device) -> dict[tuple[str, int, str], DictConfig]:
    """Configurations by loss, pixels and the field's backend."""
    shared = {
        "prompt": options.prompt,
        "device": str(device),
        "prior": options.prior,
        "prior_options.dtype": options.dtype,
        **({"scene.encoding_lr": 0, "scene.mlp_lr": 0, "scene.background_lr": 0} if options.hold else {}),
        **({"render.batch": options.batch} if options.batch else {}),
    }
    # VSD comes last, for it leaves its layers in the prior's network.
    losses = sorted(options.guidance, key="vsd".__eq__)
    found = {}
    for loss, size, backend in product(losses, options.size, usable(device, options.backend)):
        own = {"guidance": loss, "render.size": size, "scene.backend": backend}
        found[loss, size, backend] = compose_config([*as_overrides({**shared, **own}), *options.set])
    return found


def main() -> None:
    options = parse()
    device = pick_device(options.device)
    wanted = cases(options, device)
    first = next(iter(wanted.values()))
    prior = open_prior(first, device)
    precision = str(prior.dtype).removeprefix("torch.")
    about = (
        f"{hardware(device)}; torch {torch.__version__}; prior {Path(prior.name).name} in {precision}, which sees "
        f"{prior.image_size} pixels; batch {first.render.batch}; milliseconds, medians of {options.steps} steps"
    )
    print(about)
    rows: list[tuple[str, ...]] = []
    for (loss, size, backend), config in wanted.items():
        found = measure(config, prior, options.warm_steps, options.steps)
        print(f"\n{loss}, {size} pixels, {backend}, {found['samples']:.0f} samples")
        for part in (part for part in PARTS if part in found):
            indented = f"  {part}" if part in (*RENDER, "encode back") else part
            print(f"{indented:<16}{found[part]:8.1f} ms")
        print(f"a step costs {found['step / network']:.2f} times the network's own passes", flush=True)
        figures = (f"{found[name]:.2f}" if name in found else "" for name in COLUMNS)
        rows.append((loss, str(size), backend, *figures))
        report = f"{about}\n\n{table(('loss', 'pixels', 'field', *COLUMNS), rows)}\n"
        if options.output:
            options.output.write_text(report)
    print(f"\n{report}", end="")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
