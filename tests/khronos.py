"""What the Khronos glTF validator says of a file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
#: Severities of the validator: 0 errors, 1 warnings, 2 information, 3 hints.
WARNING = 1


def findings(path: Path) -> list[dict[str, Any]]:
    """All that the validator finds in a file; a test that asks is skipped where it is not installed."""
    environment = os.environ | {"NODE_PATH": os.environ.get("NODE_PATH", str(TESTS / "node_modules"))}
    asked = ["node", "-e", "require.resolve('gltf-validator')"]
    if (
        shutil.which("node") is None
        or subprocess.run(asked, env=environment, cwd=TESTS, capture_output=True).returncode
    ):
        pytest.skip("gltf-validator is not installed; npm install --prefix tests")
    command = ["node", str(TESTS / "validate_gltf.js"), str(path)]
    report = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    assert not report["truncated"]
    found: list[dict[str, Any]] = report["messages"]
    return found


def wrong(path: Path) -> list[dict[str, Any]]:
    """The errors and warnings among them."""
    return [each for each in findings(path) if each["severity"] <= WARNING]
