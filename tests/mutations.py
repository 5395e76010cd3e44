"""Break each loss in small ways and see whether the tests notice: python tests/mutations.py [loss ...]

Works on a copy; exits with 1 if a mutant survives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: For each loss: what is broken, the text, and what replaces it.
MUTATIONS: dict[str, list[tuple[str, str, str]]] = {
    "sds": [
        ("sign", "(guided - noise)", "(noise - guided)"),
        ("weight", "(weight(prior, t, weighting)", "(weight(prior, t, 'uniform')"),
        ("timestep of the weight", "weight(prior, t, weighting)", "weight(prior, t - 1, weighting)"),
        ("guidance scale", "t, cond, scale)", "t, cond, scale + 1)"),
        ("unshared noise", "add_noise(prior, x, t, noise)", "add_noise(prior, x, t, noise.flip(0))"),
    ],
    "csd": [
        ("sign", "grad = grad + factor * predicted", "grad = grad - factor * predicted"),
        ("weight", "weight(prior, t, weighting) * grad", "grad"),
        ("timestep of the weight", "weight(prior, t, weighting)", "weight(prior, t - 1, weighting)"),
        ("guidance on the wrong term", '(empty, "uncond")', '(empty, "negative")'),
        ("unshared noise", "grad = random * noise", "grad = random * noise.flip(0)"),
    ],
    "vsd": [
        ("sign", "(guided - own)", "(own - guided)"),
        ("weight", "(weight(prior, t, weighting)", "(weight(prior, t, 'uniform')"),
        ("timestep of the weight", "weight(prior, t, weighting)", "weight(prior, t - 1, weighting)"),
        ("guidance on the wrong term", "own = rendered(x_t)", "own = scale * rendered(x_t)"),
        ("unshared noise", "(predicted - noise[some])", "(predicted - noise[some].flip(0))"),
    ],
    "asd": [
        ("sign", "(guided - rendered)", "(rendered - guided)"),
        ("weight", "(weight(prior, t, weighting)", "(weight(prior, t, 'uniform')"),
        ("timestep of the weight", "weight(prior, t, weighting)", "weight(prior, later, weighting)"),
        ("guidance on the wrong term", "text, rendered, origin =", "rendered, text, origin ="),
        (
            "unshared noise",
            "(add_noise(prior, x, later, noise)",
            "(add_noise(prior, x, later, noise.flip(0))",
        ),
    ],
    "nfsd": [
        ("sign", "scale * (text - uncond)", "scale * (uncond - text)"),
        ("weight", "(weight(prior, t, weighting)", "(weight(prior, t, 'uniform')"),
        ("timestep of the weight", "weight(prior, t, weighting)", "weight(prior, t - 1, weighting)"),
        ("guidance on the wrong term", "uncond - negative)", "text - negative)"),
        ("threshold", "t < threshold", "t <= threshold"),
    ],
    "ism": [
        ("sign", "(guided - uncond)", "(uncond - guided)"),
        ("weight", "prior.sigma(t) / prior.alpha(t) *", "prior.sigma(t) *"),
        ("timestep of the weight", "prior.sigma(t) / prior.alpha(t)", "prior.sigma(before) / prior.alpha(before)"),
        ("guidance on the wrong term", 'now, cond, "uncond")[0]', 'now, cond, "text")[0]'),
        ("unshared noise", "ddim_step(prior, x_s, uncond,", "ddim_step(prior, x_s, noise,"),
        ("start of the strides", "max=1 + step * length", "max=step * length"),
        ("offset", "1 + offset**2", "1 + offset"),
    ],
    "sdi": [
        ("sign", "(x - target)", "(target - x)"),
        ("weight", "(x - target)", "(prior.sigma(t) * (x - target))"),
        ("timestep of the target", "/ prior.alpha(t)", "/ prior.alpha(t - 1)"),
        ("guidance on the wrong term", "scale=inversion_scale)", "scale=scale)"),
        ("random noise", "guided = predict_guided(prior, x_t,", "guided = predict_guided(prior, noise,"),
        ("end of the strides", "(uniform.to(t.device) * length).floor()", "(uniform.to(t.device) * length).ceil()"),
        ("fresh noise", "eta=eta", "eta=0.0"),
        ("average", "x[0].numel() if average", "x.numel() if average"),
    ],
    "dds": [
        ("sign", "(target - origin)", "(origin - target)"),
        ("weight", "(weight(prior, t, weighting)", "(weight(prior, t, 'uniform')"),
        ("timestep of the weight", "weight(prior, t, weighting)", "weight(prior, t - 1, weighting)"),
        ("guidance on one term", 'scale, "source")', '1.0, "source")'),
        ("unshared noise", "source_x, t, noise)", "source_x, t, noise.flip(0))"),
    ],
    "bridge": [
        ("sign", "(target - origin)", "(origin - target)"),
        ("weight", "(weight(prior, t, weighting)", "(weight(prior, t, 'uniform')"),
        ("timestep of the weight", "weight(prior, t, weighting)", "weight(prior, t - 1, weighting)"),
        ("source from the empty prompt", 'cond, "text", "source")', 'cond, "text", "uncond")'),
        ("scale", "* scale *", "* (scale - 1) *"),
    ],
    "hifa": [
        ("sign", "x - estimate", "estimate - x"),
        ("weight", "weight(prior, t, weighting) * prior", "prior"),
        ("weight of the distance", "* prior.alpha(t) / prior.sigma(t)", ""),
        ("guidance scale", "t, cond, scale)", "t, cond, scale + 1)"),
        ("unshared noise", "add_noise(prior, x, t, noise)", "add_noise(prior, x, t, noise.flip(0))"),
        ("pixels' sign", "(image - target)", "(image + target)"),
        ("half of the squared distance", ".square().sum() / 2", ".square().sum()"),
        ("weight of the pixels", "+ image_weight * pixels", "+ pixels"),
        ("clipped target", ".clamp(0, 1)", ""),
    ],
}  # fmt: skip


def copy_package(folder: Path) -> None:
    """Lay the mapped folders out as the package they are installed as."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "distill", folder / "distill", ignore=ignore)
    for part in ("guidance", "renderers", "samplers"):
        shutil.copytree(ROOT / part, folder / "distill" / part, ignore=ignore)


def tests_fail(folder: Path, loss: str) -> bool:
    """Run the tests that touch a loss against the package in ``folder``."""
    files = [
        "tests/test_guidance.py",
        "tests/test_oracles.py",
        "tests/test_inversion.py",
        "tests/test_guidance_contract.py",
    ]
    if loss == "vsd":
        files = ["tests/test_vsd.py"]
    command = [
        sys.executable,
        "-P",  # the copy, not the working folder
        "-m",
        "pytest",
        "-q",
        "-x",
        "-k",
        f"{loss} or test_guidance.py",
        "-p",
        "no:cacheprovider",
        *files,
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def main() -> None:
    survivors = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_package(folder)
        for loss in sys.argv[1:] or MUTATIONS:
            if tests_fail(folder, loss):
                sys.exit(f"{loss}: the tests fail before anything is broken")
            file = folder / "distill" / "guidance" / f"{loss}.py"
            source = file.read_text()
            for what, old, new in MUTATIONS[loss]:
                if source.count(old) != 1:
                    sys.exit(f"{loss}: {old!r} should be there once, and is {source.count(old)} times")
                file.write_text(source.replace(old, new))
                caught = tests_fail(folder, loss)
                print(f"{loss:8}{what:32}{'caught' if caught else 'SURVIVED'}", flush=True)
                if not caught:
                    survivors.append((loss, what))
            file.write_text(source)
    if survivors:
        sys.exit(f"{len(survivors)} mutants survived")


if __name__ == "__main__":
    main()
