"""Train the embedded prior: a text-conditioned, v-prediction diffusion model of the embedded world and of real objects.

An interrupted run continues when started again:

    python examples/embedded/train_prior.py --work ~/embedded --images 1000000                      # the world alone
    python examples/embedded/train_prior.py --work ~/embedded --things ~/things/pack --start FOLDER   # and things, from a prior of the world
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dataset
import torch
from diffusers import UNet2DConditionModel
from grown import grown
from prior_training import (
    PATCH,
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
from text_side import (
    WIDTH,
    WORLD_WIDTH,
    Reader,
    Tokens,
    fit_draft,
    make_text_encoder,
    make_tokenizer,
    train_text_encoder,
)
from things_dataset import ThingPictures, known
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from distill.embedded import things, world
from distill.embedded.captions import write
from distill.embedded.vocabulary import NAMES, write_names
from distill.priors import load_prior
from distill.priors.diffusion import DiffusionPrior
from distill.priors.draft import PART, Draft
from distill.transfer import send

#: Channels of the levels, of the world alone and with things; the deepest works on 4x4 cells, where parameters are cheap.
CHANNELS, CHANNELS_OF_THINGS = (112, 128, 144), (112, 128, 256)
GROUPS, HEADS = 16, 4
#: Channels of the draft: colour, the part that takes a colour, and opacity.
DRAFT = 5
#: The world's, of the pictures, with things.
WORLD_SHARE = 0.2
WITHOUT_COLOUR = 0.08
TEXT_STEPS = {False: 2000, True: 5000}
SHIPPED = Path(__file__).resolve().parents[2] / "distill/embedded/prior"


def make_unet(things_too: bool = False) -> UNet2DConditionModel:
    """Works on 4x4 patches (pixel unshuffle), 48 channels of 16x16: a quarter of the cost of 64x64.

    With things, it is shown the draft of its caption beside them, see ``distill.priors.draft``.

    The text enters twice, as in DeepFloyd IF: pooled into the time embedding, and by cross-attention. It goes
    down to 4x4, where the padding tells every cell where it is: a layout can follow from the text alone.
    """
    return UNet2DConditionModel(
        sample_size=dataset.SIZE // PATCH,
        in_channels=3 * PATCH**2 + (DRAFT if things_too else 0),
        out_channels=3 * PATCH**2,
        block_out_channels=CHANNELS_OF_THINGS if things_too else CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH if things_too else WORLD_WIDTH,
        attention_head_dim=HEADS,
        norm_num_groups=GROUPS,
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=192,
        addition_embed_type="text",
        addition_embed_type_num_heads=HEADS,
    )


@dataclass(frozen=True)
class Data:
    """Pictures of the world, and of things or None, with their captions' tokens, and the world's share of them."""

    world: dataset.Pictures
    things: ThingPictures | None
    tokens: Tokens
    world_share: float = WORLD_SHARE

    def draw(self, n: int) -> tuple[Tensor, list[str]]:
        """Draw pictures in [-1, 1], ``[n, 3, 64, 64]``, with a caption each; a tenth are empty."""
        g = self.world.generator
        real = int((torch.rand(n, generator=g) >= self.world_share).sum()) if self.things else 0
        images, captions = [], []
        if real < n:
            batch = self.world.draw(n - real)
            images.append(batch.images)
            bare = torch.rand(n - real, generator=g) < (WITHOUT_COLOUR if self.things else 0.0)
            for kind, text, plain in zip(
                batch.kind.tolist(), self.world.captions(batch), bare.tolist(), strict=True
            ):
                captions.append(write(world.KINDS[kind], None, world.parse(text).view) if plain else text)
        if self.things and real:
            thing = self.things.draw(real)
            images.append(thing.images)
            captions += self.things.captions(thing)
        dropped = (torch.rand(n, generator=g) < 0.1).tolist()
        return torch.cat(images), ["" if d else text for d, text in zip(dropped, captions, strict=True)]


def write_folder(
    folder: Path, unet_state: dict[str, Tensor], encoder: CLIPTextModel, data: Data, draft: Draft | None = None
) -> None:  # fmt: skip
    """Write the diffusers folder layout in fp16 safetensors, with the draft, and what the prior knows."""
    folder.mkdir(parents=True, exist_ok=True)
    unet = make_unet(data.things is not None)
    unet.load_state_dict(unet_state)
    unet.half().save_pretrained(folder / "unet")
    copy.deepcopy(encoder).half().save_pretrained(folder / "text_encoder")
    data.tokens.tokenizer.save_pretrained(folder / "tokenizer")
    make_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    if draft is not None:
        draft.write(folder / PART)
        index[PART] = ["distill", "Draft"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    if data.things:
        write_names(folder, known(data.things.pack))
    else:
        (folder / NAMES).unlink(missing_ok=True)


def started(
    unet: UNet2DConditionModel, folder: Path, data: Data, text_side: Path | None = None,
    text_updates: int = TEXT_STEPS[True],
) -> CLIPTextModel:  # fmt: skip
    """Give a UNet the weights of a prior's folder, grown where it is wider; returns the encoder that goes with it.

    Args:
        unet: is changed.
        folder: the prior's.
        data: what is trained on.
        text_side: a prior's folder whose encoder, aligned with the same data, is used with the grown UNet.
        text_updates: of the encoder, where it is aligned again.
    """
    state = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    state = {name: value.float() for name, value in state.items()}
    first, taken = "conv_in.weight", unet.config["in_channels"]
    state[first] = nn.functional.pad(state[first], (0, 0, 0, 0, 0, taken - state[first].shape[1]))
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()
    wide, narrow = (w["mid_block.resnets.0.conv1.weight"].shape[0] for w in (unet.state_dict(), state))
    if wide == narrow:
        unet.load_state_dict(state)
        return aligned(folder, data)
    if data.things is None or (narrow, wide) != (CHANNELS[-1], CHANNELS_OF_THINGS[-1]):
        raise ValueError(
            f"{folder} has {narrow} channels at its deepest level, and this prior {wide}: add or leave out --things"
        )
    new = grown(
        state, unet.state_dict(), narrow=narrow, wide=wide, others=CHANNELS[:-1], groups=GROUPS, heads=HEADS
    )
    unet.load_state_dict(new)
    if text_side is not None:
        return aligned(text_side, data)
    old = Reader(encoder, CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    return train_text_encoder(data.tokens.tokenizer, data.world, data.things, old, text_updates)


def same_words(one: CLIPTokenizer, other: CLIPTokenizer) -> bool:
    """Whether two tokenizers give every caption the same numbers."""
    return bool(one.get_vocab() == other.get_vocab())


def aligned(folder: Path, data: Data) -> CLIPTextModel:
    """The text encoder of a prior that was trained on the same names.

    Raises:
        ValueError: it was trained on others.
    """
    if not same_words(CLIPTokenizer.from_pretrained(folder / "tokenizer"), data.tokens.tokenizer):
        raise ValueError(
            f"{folder} was trained on other names, so its text encoder does not fit: take the pack that it was trained on"
        )
    return CLIPTextModel.from_pretrained(folder / "text_encoder").float()


def start(options: argparse.Namespace, data: Data) -> Run:
    """Go on from the work folder's state, else from ``--start``, else from nothing."""
    device, real = torch.device(options.device), data.things is not None
    unet, saved = make_unet(real), options.work / "prior.pt"
    updates = options.text_updates or TEXT_STEPS[real]
    if saved.exists():
        encoder = make_text_encoder(data.tokens.tokenizer, WIDTH if real else WORLD_WIDTH)
    elif options.start:
        encoder = started(unet, options.start, data, options.text_side, updates)
    else:
        encoder = train_text_encoder(data.tokens.tokenizer, data.world, data.things, steps=updates)
    run = Run.begin(unet, encoder, data.world.generator, device)
    if saved.exists():
        run.load(saved, device, data.tokens.tokenizer.get_vocab())
        print(f"continuing at {run.seen} images")
    return run


def draft_for(folder: Path | None, encoder: CLIPTextModel, data: Data) -> Draft | None:
    """The draft that the UNet is shown, with things: that of ``--start``, which its UNet has learnt from, else a new one."""
    if data.things is None:
        return None
    if folder is not None and (folder / PART).is_dir():
        return Draft.read(folder / PART).eval().requires_grad_(False)
    return fit_draft(encoder, data.tokens.tokenizer, data.world, data.things)


def told_in_full(caption: str) -> bool:
    """Whether a caption is one of those that a prior of the world alone was trained on."""
    try:
        return world.parse(caption).colour is not None
    except ValueError:
        return False


def taught(teacher: DiffusionPrior, captions: Sequence[str], noisy: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """The v to be predicted: where the teacher knows the caption its prediction, which has less variance, else the true one.

    Args:
        teacher: a prior of the world alone.
        captions: one for each picture.
        noisy: the noisy pictures, shape ``[n, *teacher.shape]``.
        t: their timesteps, shape ``[n]``.
        v: the true one, in the shape of ``noisy``.
    """
    rows = [row for row, caption in enumerate(captions) if told_in_full(caption)]
    if not rows:
        return v
    with torch.no_grad():
        known = teacher.predict(noisy[rows], t[rows], teacher.embed([captions[row] for row in rows]))
    mixed = v.clone()
    mixed[rows] = known.to(v)
    return mixed


def with_draft(model: Model, draft: Draft | None) -> Model:
    """Show a UNet the draft of its caption beside the noisy pictures."""
    if draft is None:
        return model
    shown = draft.beside
    return lambda noisy, t, states: model(shown(noisy, states), t, states)


def train_step(
    run: Run, model: Model, data: Data, abar: Tensor, n: int, exponent: float, teacher: DiffusionPrior | None = None,
    gradient: Gradient = gradient,
) -> None:  # fmt: skip
    """One update on ``n`` pictures by the UNet, perhaps compiled and with its draft."""
    images, captions = data.draw(n)
    with torch.no_grad():
        cond = run.encoder(send(data.tokens(captions), abar.device)).last_hidden_state
    target = partial(taught, teacher, captions) if teacher else None
    learn(run, model, images, cond, abar, exponent, target=target, gradient=gradient)


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures and training state")
    parser.add_argument("--images", type=int, default=1_000_000, help="pictures to train on, in all")
    parser.add_argument("--minutes", type=float, help="train for so long, in all, and not for --images")
    parser.add_argument(
        "--batch", type=int, default=16,
        help="pictures per update. Small batches leave a machine idle: with --compile, a CPU core trains on 51 pictures a second "
        "with 16 and on 78 with 64; an H100, without, on 12,000 with 512. The default --peak-lr was chosen for 16; 0.0016 was used for 512",
    )  # fmt: skip
    parser.add_argument("--peak-lr", type=float, default=8e-4)
    add_timesteps(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="15%% faster after a minute of compiling")
    parser.add_argument("--start", type=Path, help="a prior's folder to continue from, with a new optimiser")
    parser.add_argument(
        "--text-side",
        type=Path,
        help="a prior of the same things whose text encoder is used with the grown one, instead of aligning it again",
    )
    parser.add_argument(
        "--text-updates",
        type=int,
        help="that align the text encoder: 5,000 with things and 2,000 without, by default",
    )
    parser.add_argument(
        "--things",
        type=Path,
        help="pack of real objects to learn beside the world, from render_things.py pack",
    )
    parser.add_argument(
        "--world-share", type=float, default=WORLD_SHARE, help="of the pictures, with --things"
    )
    parser.add_argument(
        "--teacher", type=Path, help="a prior of the world alone, whose predictions the world's captions are learnt from"
    )  # fmt: skip
    parser.add_argument("--save-minutes", type=float, default=4)
    parser.add_argument(
        "--output", type=Path,
        help="prior's folder, rewritten at each save; without --things by default the bundled one",
    )  # fmt: skip
    options = parser.parse_args(words)
    check_options(parser, options)
    options.output = options.output or SHIPPED
    for name in ("work", "things", "start", "text_side", "teacher", "output"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).expanduser())
    return options


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with one line where options have no meaning, alone or together."""
    check_amounts(parser, options)
    if options.text_updates is not None and options.text_updates < 1:
        parser.error(f"--text-updates must be at least 1, got {options.text_updates}")
    if options.things and not options.output:
        parser.error(
            "--things needs --output, the folder of the new prior: the bundled one is of the world alone"
        )
    if options.text_side and not (options.things and options.start):
        parser.error("--text-side is for --things with --start, where a prior of the world is grown")


def load(options: argparse.Namespace) -> Data:
    """The pictures, rendered or unpacked, and a tokenizer of their captions."""
    pack = things.read_pack(options.things) if options.things else None
    dataset.build(options.work / "pictures", shapes_per_kind=64, seed=0)
    generator = torch.Generator().manual_seed(0)
    pictures = dataset.Pictures(options.work / "pictures", generator, options.device)
    real = ThingPictures(pack, generator, options.device) if pack else None
    return Data(pictures, real, Tokens(tokenizer_for(options.start, real)), options.world_share)


def tokenizer_for(folder: Path | None, real: ThingPictures | None) -> CLIPTokenizer:
    """A prior's own tokenizer where the same captions are trained on, else a new one."""
    if folder is None or real is not None:
        return make_tokenizer(real)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    return tokenizer


def main() -> None:
    options = parse_options()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    data = load(options)
    run = start(options, data)
    draft = draft_for(options.start, run.encoder, data)
    if draft:
        draft.to(options.device)
    print(f"UNet: {sum(p.numel() for p in run.unet.parameters()) / 1e6:.2f}M parameters", flush=True)

    def save() -> None:
        run.save(options.work / "prior.pt", data.tokens.tokenizer.get_vocab())
        write_folder(options.output, run.averaged(), run.encoder, data, draft)

    abar = make_scheduler().alphas_cumprod.to(options.device)
    model = with_draft(torch.compile(run.unet) if options.compile else run.unet, draft)
    teacher = load_prior(str(options.teacher), device=options.device) if options.teacher else None
    # A teacher knows another number of captions each time, and a graph needs the same number.
    compute = gradient if teacher else gradient_on(abar.device)

    def update(exponent: float) -> None:
        train_step(run, model, data, abar, options.batch, exponent, teacher, compute)

    train(run, options, update, save)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
