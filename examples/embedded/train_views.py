"""Train an embedded multi-view prior from the bundled text prior: four views of an object together, or one picture.

An interrupted run continues when started again:

    python examples/embedded/train_views.py --work ~/views --output ~/views/prior --images 500000

On single pictures the network begins as the prior that it is started from: what it makes of a camera is added to the time embedding
and is 0 at first.
In some of the updates it sees single pictures, captioned with their view and told no camera, so that it stays a prior of these
(``prior_options.views=1``); in the others it sees objects in rings of four views, captioned without a view.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dataset
import torch
import views_dataset
from diffusers import UNet2DConditionModel
from prior_training import (
    Gradient,
    Model,
    Run,
    add_timesteps,
    check_amounts,
    gradient,
    gradient_on,
    learn,
    make_scheduler,
    train,
)
from safetensors.torch import load_file
from text_side import Tokens
from torch import Tensor, nn
from train_prior import SHIPPED
from transformers import CLIPTextModel, CLIPTokenizer

from distill.embedded.vocabulary import NAMES, write_names
from distill.files.atomic import sha256_once
from distill.priors.multi_view.attention import TOLD, VIEWS, Folded, fold
from distill.priors.multi_view.camera import NUMBERS
from distill.transfer import send

#: Parts of the folder that stay as they are.
KEPT = ("text_encoder", "tokenizer", "scheduler")
#: What computes the gradient of single pictures and of views together, kernel by kernel.
PLAIN: Mapping[int, Gradient] = MappingProxyType({1: gradient, VIEWS: gradient})
#: Of captions, how many are empty, for classifier-free guidance.
WITHOUT_TEXT = 0.1


def make_unet(folder: Path) -> UNet2DConditionModel:
    """The UNet of a prior's folder with layers for cameras, the last of which is 0; or with those that it has."""
    said = UNet2DConditionModel.load_config(folder / "unet")
    unet: UNet2DConditionModel = UNet2DConditionModel.from_config({**said, **TOLD})
    state = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    unknown = unet.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    if unknown.missing_keys:
        nn.init.zeros_(unet.class_embedding.linear_2.weight)
        nn.init.zeros_(unet.class_embedding.linear_2.bias)
    return unet


@dataclass(frozen=True)
class Attention:
    """The processors of a UNet's attention, for four views together and for single pictures."""

    together: dict[str, Any]
    single: dict[str, Any]

    @classmethod
    def of(cls, unet: UNet2DConditionModel) -> Attention:
        """Fold a UNet's attention, and keep both kinds."""
        fold(unet, VIEWS)
        folded = dict(unet.attn_processors)
        plain = {name: each.plain if isinstance(each, Folded) else each for name, each in folded.items()}
        return cls(folded, plain)


@dataclass(frozen=True)
class Data:
    """Single pictures, rings of views, and their captions' tokens."""

    pictures: dataset.Pictures
    rings: views_dataset.Rings
    tokens: Tokens

    def draw(self, n: int, views: int) -> tuple[Tensor, Tensor, list[str]]:
        """Draw ``n`` pictures, ``views`` of each object: in [-1, 1], with their cameras' numbers and captions."""
        if views == 1:
            batch = self.pictures.draw(n)
            images, cameras, said = batch.images, torch.zeros(n, NUMBERS), self.pictures.captions(batch)
        else:
            images, cameras, said = self.rings.draw(n // views)
        g = self.pictures.generator
        dropped = (torch.rand(n // views, generator=g) < WITHOUT_TEXT).repeat_interleave(views).tolist()
        return images, cameras, ["" if d else text for d, text in zip(dropped, said, strict=True)]


def load(options: argparse.Namespace) -> Data:
    """The pictures, rendered where they are not there yet, and the started prior's tokenizer."""
    dataset.build(options.work / "pictures", shapes_per_kind=options.shapes, seed=0)
    views_dataset.build(options.work / "rings", options.shapes, seed=0, rings=options.rings)
    generator = torch.Generator().manual_seed(0)
    pictures = dataset.Pictures(options.work / "pictures", generator, options.device)
    rings = views_dataset.Rings.of(options.work / "rings", pictures)
    return Data(pictures, rings, Tokens(CLIPTokenizer.from_pretrained(options.start / "tokenizer")))


def start(options: argparse.Namespace, data: Data) -> tuple[Run, Attention]:
    """Go on from the work folder's state, else from the prior in ``--start``."""
    device, saved = torch.device(options.device), options.work / "views.pt"
    unet = make_unet(options.start)
    attention = Attention.of(unet)
    encoder = CLIPTextModel.from_pretrained(options.start / "text_encoder").float()
    run = Run.begin(unet, encoder, data.pictures.generator, device)
    if saved.exists():
        run.load(saved, device, data.tokens.tokenizer.get_vocab(), weights_of(options.start))
        print(f"continuing at {run.seen} images")
    return run, attention


def weights_of(folder: Path) -> str:
    """Hashes of a prior's weights, which tell it apart: all but the UNet is taken over from it."""
    return " ".join(sha256_once(path) for path in sorted(folder.glob("*/*.safetensors")))


def train_step(
    run: Run, model: Model, attention: Attention, data: Data, abar: Tensor, n: int, exponent: float, single: float,
    gradients: Mapping[int, Gradient] = PLAIN,
) -> int:  # fmt: skip
    """One update on ``n`` pictures by the UNet, perhaps compiled; returns how many views each object had.

    ``gradients`` compute that of single pictures and that of views together.
    """
    views = 1 if float(torch.rand(1, generator=run.generator)) < single else VIEWS
    run.unet.set_attn_processor(dict(attention.single if views == 1 else attention.together))
    images, cameras, captions = data.draw(n, views)
    with torch.no_grad():
        cond = run.encoder(send(data.tokens(captions), abar.device)).last_hidden_state
    told = send(cameras, abar.device)
    learn(run, model, images, cond, abar, exponent, views, gradient=gradients[views], class_labels=told)
    return views


def write_folder(folder: Path, run: Run, begun: Path) -> None:
    """Write the prior's folder in fp16 safetensors; all but the UNet is that of the prior it began as."""
    folder.mkdir(parents=True, exist_ok=True)
    made = UNet2DConditionModel.from_config(run.unet.config)
    made.load_state_dict(run.averaged())
    made.half().save_pretrained(folder / "unet")
    for part in KEPT:
        shutil.copytree(begun / part, folder / part, dirs_exist_ok=True)
    shutil.copy(begun / "model_index.json", folder / "model_index.json")
    if (begun / NAMES).is_file():
        shutil.copy(begun / NAMES, folder / NAMES)
    else:
        write_names(folder, [])


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures and training state")
    parser.add_argument("--output", type=Path, required=True, help="prior's folder, rewritten at each save")
    parser.add_argument("--start", type=Path, default=SHIPPED, help="folder of the text prior to begin as")
    parser.add_argument("--images", type=int, default=500_000, help="pictures to train on, in all")
    parser.add_argument("--minutes", type=float, help="train for so long, in all, and not for --images")
    parser.add_argument("--batch", type=int, default=16, help="pictures per update, a multiple of 4")
    parser.add_argument("--single", type=float, default=0.3, help="share of the updates on single pictures")
    parser.add_argument("--peak-lr", type=float, default=2e-4)
    parser.add_argument("--shapes", type=int, default=64, help="shapes of each kind")
    parser.add_argument("--rings", type=int, default=views_dataset.RINGS, help="rings of views of each shape")
    add_timesteps(parser)
    parser.add_argument("--compile", action="store_true", help="faster after some minutes of compiling")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-minutes", type=float, default=4)
    options = parser.parse_args(words)
    check_amounts(parser, options)
    if options.batch < VIEWS or options.batch % VIEWS:
        parser.error(
            f"--batch must be a multiple of the {VIEWS} views of an object, at least {VIEWS}, got {options.batch}"
        )
    if not 0 <= options.single <= 1:
        parser.error(f"--single must be a share in [0, 1], got {options.single:g}")
    for name in ("work", "start", "output"):
        setattr(options, name, getattr(options, name).expanduser())
    if options.output.resolve() in (SHIPPED.resolve(), options.start.resolve()):
        parser.error("--output must be a folder of its own, not that of the prior to begin as")
    if not (options.start / "unet" / "config.json").is_file():
        parser.error(
            f"--start must be the folder of a text prior, and {options.start} has no unet/config.json"
        )
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse_options(words)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    data = load(options)
    run, attention = start(options, data)
    print(f"UNet: {sum(p.numel() for p in run.unet.parameters()) / 1e6:.2f}M parameters", flush=True)

    def save() -> None:
        run.save(options.work / "views.pt", data.tokens.tokenizer.get_vocab(), weights_of(options.start))
        write_folder(options.output, run, options.start)

    abar = make_scheduler().alphas_cumprod.to(options.device)

    # It is compiled once for each kind of attention.
    model = torch.compile(run.unet) if options.compile else run.unet
    gradients = {views: gradient_on(abar.device) for views in (1, VIEWS)}

    def update(exponent: float) -> None:
        train_step(run, model, attention, data, abar, options.batch, exponent, options.single, gradients)

    train(run, options, update, save)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
