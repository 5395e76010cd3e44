"""The losses through the model of a picture: objects of the embedded world, each made from one picture and measured."""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from distill.cameras import Cameras, orbit, turntable
from distill.conditions.cutout import Frame
from distill.contracts import View
from distill.embedded import world
from distill.files.atomic import write_atomic
from distill.files.lines import finite, json_of
from distill.files.paths import user_path
from distill.lab.comparison.checks import check_cells, check_counts
from distill.lab.novel_view.render import Surface, from_world, picture
from distill.loop import train
from distill.run.assembly.assemble import assemble
from distill.run.assembly.scenes import look
from distill.run.config.compose import compose_config
from distill.run.config.overrides import as_overrides
from distill.run.folder.folders import folder_name
from distill.silhouettes import silhouette_iou
from distill.viewing import DISTANCE, FOV_Y_DEG

log = logging.getLogger(__name__)

#: Every method's options with a picture alone, at the scales that the preset has for it. All draw timesteps as the preset does,
#: so that the losses alone differ, except for ``tp_sds``. ``mix`` is given the prompt as well.
THROUGH: dict[str, dict[str, Any]] = {
    "sds": {"guidance": "sds"},
    "tp_sds": {"guidance": "sds", "timesteps": "dreamtime"},
    "csd": {"guidance": "csd"},
    "asd": {"guidance": "asd"},
    "vsd": {"guidance": "vsd"},
    "sdi": {"guidance": "sdi"},
    "ism": {"guidance": "ism"},
    "nfsd": {"guidance": "nfsd"},
    "mix": {"guidance": "mix"},
}
#: Pairs of colour and kind that the novel-view model has never seen.
OBJECTS = ("a brown mug", "a purple car", "a red duck", "a purple chair")
VIEWS, SIZE, PICTURE, ELEVATION_DEG = 8, 128, 256, 15.0
AZIMUTH_DEG, HEIGHT_DEG = 30.0, 20.0
#: The shape of an object, among those of its kind.
SHAPE = "0100"


def the_camera(elevation_deg: float = HEIGHT_DEG) -> Cameras:
    """The camera that takes the pictures, a batch of one."""
    return orbit(torch.tensor([AZIMUTH_DEG]), torch.tensor([elevation_deg]), DISTANCE, FOV_Y_DEG)


def photograph(surface: Surface, cameras: Cameras, size: int) -> Tensor:
    """RGBA in [0, 1] from each camera, shape ``[views, 4, size, size]``."""
    ones = [cameras.part(i, i + 1) for i in range(len(cameras))]
    pictures = [torch.from_numpy(picture(surface, one, size, 2)) for one in ones]
    return torch.stack(pictures).movedim(-1, 1).float() / 255


def save_photograph(surface: Surface, camera: Cameras, path: Path) -> None:
    """Write what a camera sees, with an alpha channel, ``PICTURE`` pixels wide and high."""
    rgba = (photograph(surface, camera, PICTURE)[0].movedim(0, -1) * 255).round().byte()
    Image.fromarray(rgba.numpy()).save(path)


def framed(surface: Surface, frame: Frame, size: int, camera: Cameras | None = None) -> Surface:
    """The object where the cut-out of its picture puts it: moved across the camera's axis, then scaled.

    Args:
        surface: as the camera took it.
        frame: the part of its picture that was used.
        size: height and width of that picture, pixels.
        camera: ``the_camera()`` by default.
    """
    seen = 2 * DISTANCE * math.tan(math.radians(FOV_Y_DEG) / 2)  # what the picture spans at the object
    right, up = (the_camera() if camera is None else camera).c2w[0, :3, :2].T.double().numpy()
    across, down = (start + frame.side / 2 - size / 2 for start in (frame.left, frame.top))
    mesh = surface.mesh.copy()
    mesh.apply_translation(-(across * right - down * up) * seen / size)
    mesh.apply_scale(size / frame.side)
    return replace(surface, mesh=mesh)


def measure(view: View, surface: Surface) -> dict[str, Any]:
    """Against the truth, as it stands and turned: the IoU, the PSNR and whether half a turn fits better."""
    truth = photograph(surface, turntable(VIEWS, ELEVATION_DEG), SIZE)
    rgb, inside = truth[:, :3] * truth[:, 3:] + 1 - truth[:, 3:], truth[:, 3] > 0.5
    seen = view(turntable(VIEWS, ELEVATION_DEG), SIZE, SIZE)
    drawn = seen.rgb.detach().cpu().movedim(-1, 1).clamp(0, 1)
    solid = seen.opacity.detach().cpu()[..., 0] > 0.5
    ious = [silhouette_iou(solid, inside.roll(-turn, 0)).mean().item() for turn in range(VIEWS)]
    errors = [(drawn - rgb.roll(-turn, 0)).square().mean((1, 2, 3)) for turn in range(VIEWS)]
    psnrs = [(-10 * error.clamp(min=1e-10).log10()).mean().item() for error in errors]
    best = max(range(VIEWS), key=lambda turn: psnrs[turn])
    return {
        "iou": ious[0],
        "psnr": psnrs[0],
        "flipped": psnrs[VIEWS // 2] > psnrs[0],
        "best_iou": max(ious),
        "best_psnr": psnrs[best],
        "best_turn_deg": best * 360 / VIEWS,
    }


def make(prompt: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Make one object from its picture, whose elevation is given, and measure it; keeps no files."""
    colour, kind = world.pair_of(prompt)
    surface = from_world(f"{colour}-{kind}-{SHAPE}", 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.png"
        save_photograph(surface, the_camera(), path)
        given: dict[str, Any] = {
            "reference.azimuth_deg": AZIMUTH_DEG,
            "reference.elevation_deg": HEIGHT_DEG,
        }
        if options.get("guidance") == "mix":
            given["prompt"] = prompt
        job = assemble(compose_config(as_overrides({"image": str(path), "seed": 0, **given, **options})))
    assert job.picture is not None
    start = time.process_time()
    train(job)
    seconds = time.process_time() - start
    view = look(job.scenes[0], job.prior.device)
    return {**measure(view, framed(surface, job.picture.frame, PICTURE)), "seconds": seconds}


def compare_pictures(
    methods: Mapping[str, Mapping[str, Any]] | None = None,
    prompts: Sequence[str] = OBJECTS,
    *,
    output_dir: str | Path,
    iterations: int = 300,
    **options: Any,
) -> Path:
    """Make every object by every method, or read what was made before, and write ``pictures.csv``; returns its path.

    Args:
        methods: options of ``distill.generate`` by a name of one's choice, which is that of a folder; ``THROUGH`` by default.
        prompts: name a colour and a kind of the embedded world.
        output_dir: where ``pictures.csv`` and the cells go; the table has those of other methods and prompts that are there, too.
        iterations: of each cell.
        **options: for all cells.

    Raises:
        ValueError: an option is wrong, or a cell was made with others, in one line.
    """
    methods = THROUGH if methods is None else methods
    check_cells(methods, prompts)
    check_counts(iterations=iterations)
    for prompt in prompts:
        world.pair_of(prompt)
    root = user_path(output_dir)
    cells = {
        root / "pictures" / name / f"{folder_name(prompt)}.json": (name, prompt)
        for name in methods
        for prompt in prompts
    }
    asked = {name: {"iterations": iterations, **options, **wanted} for name, wanted in methods.items()}
    for path, (name, _) in cells.items():
        if path.exists() and (before := read_object(path)["options"]) != finite(asked[name]):
            raise ValueError(f"{path} was made with {before}, not {asked[name]}; choose another output_dir")
    for path, (name, prompt) in cells.items():
        if not path.exists():
            made = {"method": name, "prompt": prompt, "options": asked[name], **make(prompt, asked[name])}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json_of(made, indent=1))
            log.info("%s from a picture, %s: IoU %.3f, PSNR %.1f dB", prompt, name, made["iou"], made["psnr"])
        write_table(root, list(cells))
    return root / "pictures.csv"


def write_table(root: Path, first: Sequence[Path]) -> None:
    """Write ``pictures.csv`` with every object that is kept below a folder, those of some files before the others."""
    from distill.lab.comparison.report import as_csv

    there = sorted((root / "pictures").glob("*/*.json"))
    kept = [*(path for path in first if path in there), *(path for path in there if path not in first)]
    lines = [{name: value for name, value in read_object(path).items() if name != "options"} for path in kept]
    write_atomic(root / "pictures.csv", as_csv(lines))


def read_object(path: Path) -> dict[str, Any]:
    """What is kept of an object; a figure that is no number is nan again."""
    made: dict[str, Any] = json.loads(path.read_text())
    return {name: math.nan if value is None else value for name, value in made.items()}
