"""What importing costs, that every module imports, and what is said of the versions that it all needs."""

from __future__ import annotations

import configparser
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

import distill


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    heavy = run(
        "import sys, distill; print([m for m in ('torch', 'diffusers', 'transformers', 'warp', 'hydra', 'numpy') if m in sys.modules])"
    )
    assert heavy == "[]"


def test_help_loads_nothing_heavy_and_says_how_to_start() -> None:
    code = "import sys\nfrom distill.cli import main\ntry: main(['--help'])\nexcept SystemExit as e: print(e.code, 'torch' in sys.modules)"
    said = run(code)
    assert 'distill "a red mug"' in said
    assert said.endswith("0 False")


@pytest.mark.slow
def test_a_run_loads_meshes_when_it_makes_one() -> None:
    code = "import sys, distill.run.execute, distill.renderers as r; r.available(); print('trimesh' in sys.modules)"
    assert run(code) == "False"


MODULES = [
    m.name for m in pkgutil.walk_packages(distill.__path__, "distill.") if not m.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    assert importlib.import_module(name).__doc__ is not None or name.endswith("conf")


@pytest.mark.parametrize("folder", ["guidance", "renderers", "samplers"])
def test_the_folders_refuse_their_bare_names(folder: str) -> None:
    file = importlib.import_module(f"distill.{folder}").__file__
    spec = importlib.util.spec_from_file_location(folder, str(file))
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=rf"distill\.{folder}"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_lowest_versions_tested_are_those_that_setup_allows() -> None:
    root, setup = Path(__file__).parents[1], configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    lines = (root / "constraints-lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    allowed = dict(line.split(">=") for line in setup["options"]["install_requires"].split())
    assert Version(tested.pop("torch")) >= Version(allowed.pop("torch"))  # one version for both ends
    assert tested.pop("pytest") in setup["options.extras_require"]["dev"]
    assert {name: Version(found) for name, found in tested.items()} == {
        name: Version(bound) for name, bound in allowed.items()
    }
