"""Train the embedded prior: a text-conditioned, v-prediction diffusion model of the embedded world.

Run it from this folder; an interrupted run continues when started again:
    python train_prior.py --work ~/embedded --images 1000000
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dataset
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from distill.embedded import world
from distill.run.journal import stop_signals

WIDTH = 128
TOKENS = 20
PATCH = 4
THUMBNAIL = 16
SHIPPED = Path(__file__).resolve().parents[2] / "distill/embedded/prior"


def make_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose merges spell out the world's words; other words fall apart into letters."""
    text = [world.caption(c, k, v, f) for c in world.COLOURS for k in world.KINDS for v in world.VIEWS
            for f in range(len(world.TEMPLATES))]  # fmt: skip
    words = sorted({word for line in text for word in line.replace(",", " ").split()})
    letters = [chr(code) for code in range(33, 127)]
    vocab = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in words:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = ["".join(pieces[:2])]
            vocab.append(pieces[0])
    vocab = list(dict.fromkeys([*vocab, "<|startoftext|>", "<|endoftext|>"]))
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(vocab)},
        merges=list(dict.fromkeys(merges)),
        model_max_length=TOKENS,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_unet() -> UNet2DConditionModel:
    """Works on 4x4 patches (pixel unshuffle), 48 channels of 16x16: a quarter of the cost of 64x64.

    The text enters twice, as in DeepFloyd IF: pooled into the time embedding, and by cross-attention. It goes
    down to 4x4, where the padding tells every cell where it is: a layout can follow from the text alone.
    """
    return UNet2DConditionModel(
        sample_size=dataset.SIZE // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        block_out_channels=(112, 128, 144),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=192,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    return tokenizer(
        captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def picture_coordinates(pictures: dataset.Pictures, components: int = 72) -> Tensor:
    """Principal coordinates of the mean picture of each kind and view, ``[kinds, views, components]``.

    Principal components of thumbnails about each kind's mean, half whitened: by the fourth root of their
    variance, so that what moves few pixels still counts.
    """
    kinds, views = len(world.KINDS), len(world.VIEWS)
    index = pictures.kind * views + pictures.view
    thumbnails = torch.zeros(kinds * views, 5 * THUMBNAIL**2)
    for start in range(0, len(index), 1024):
        part = pictures.layers[start : start + 1024].permute(0, 3, 1, 2).float() / 255
        small = nn.functional.adaptive_avg_pool2d(part, THUMBNAIL).flatten(1)
        thumbnails.index_add_(0, index[start : start + 1024], small)
    thumbnails /= torch.bincount(index, minlength=kinds * views)[:, None]
    about = thumbnails.view(kinds, views, -1)
    about = (about - about.mean(1, keepdim=True)).flatten(0, 1)
    left, strength, _ = torch.linalg.svd(about, full_matrices=False)
    return (left * strength.sqrt())[:, :components].view(kinds, views, components)


def train_text_encoder(
    tokenizer: CLIPTokenizer, pictures: dataset.Pictures, steps: int = 2000
) -> CLIPTextModel:
    """Align the encoder with pictures: features from the caption's end on are coordinates of what it describes.

    The first are the colour, then the kind, each one-hot, then ``picture_coordinates`` (their mean, 0, for a
    caption without a view), scaled to half of the variance. Features that only name the words are not enough:
    what a view looks like depends on the kind, and a UNet left to find that out learns colours and kinds
    first and all but ignores the view. All tokens from the end of the caption on carry them, the padding too:
    attention that has not yet learnt where to look dilutes a single one.
    """
    colours, kinds, views = len(world.COLOURS), len(world.KINDS), len(world.VIEWS)
    places = picture_coordinates(pictures)
    places = 7.0 * places / places.square().sum(-1).mean().sqrt()
    names, size = list(world.COLOURS), colours + kinds + places.shape[-1]
    encoder = make_text_encoder(tokenizer)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    progress = tqdm(range(steps), "text encoder")
    for _ in progress:
        colour, kind, view, form = (
            torch.randint(n, (192,)) for n in (colours, kinds, views + 1, len(world.TEMPLATES))
        )
        rows = zip(colour.tolist(), kind.tolist(), view.tolist(), form.tolist(), strict=True)
        captions = [
            world.caption(names[c], world.KINDS[k], world.VIEWS[v] if v < views else None, f)
            for c, k, v, f in rows
        ]
        place = torch.where((view < views)[:, None], places[kind, view.clamp(max=views - 1)], 0.0)
        target = torch.cat(
            [5 * nn.functional.one_hot(colour, colours), 5 * nn.functional.one_hot(kind, kinds), place], dim=1
        )
        ids = tokens(tokenizer, captions)
        errors = (encoder(ids).last_hidden_state[..., :size] - target[:, None]).square().sum(-1)
        loss = errors[ids == tokenizer.eos_token_id].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", of=f"{target.square().sum(1).mean().item():.1f}")
    return encoder.eval().requires_grad_(False)


def patchify(images: Tensor) -> Tensor:
    return nn.functional.pixel_unshuffle(images, PATCH).contiguous(memory_format=torch.channels_last)


def learning_rate(done: float, peak: float) -> float:
    """Linear warm-up over 1%, then cosine to 2% of the peak."""
    return peak * min(done / 0.01, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1))))


def timestep_exponent(done: float) -> float:
    """Exponent ``p`` of ``t = 1000 u**p``: 0.12 (half of the timesteps above 920) rising to 0.7 at 70%.

    Where a view differs is decided at the noisiest timesteps and learnt last: begun there, it comes many times
    sooner, and what the less noisy ones need comes quickly after.
    """
    return 0.12 + 0.58 * min(done / 0.7, 1.0)


def write_folder(
    folder: Path, unet_state: dict[str, Tensor], encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> None:
    """Write the diffusers folder layout in fp16 safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    unet = make_unet()
    unet.load_state_dict(unet_state)
    unet.half().save_pretrained(folder / "unet")
    copy.deepcopy(encoder).half().save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    make_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


@dataclass
class Run:
    """Everything that changes while the UNet trains."""

    unet: UNet2DConditionModel
    encoder: CLIPTextModel
    optimiser: torch.optim.Optimizer
    ema: list[Tensor]
    generator: torch.Generator
    seen: int = 0
    loss: float = 0.0
    seconds: float = 0.0

    def averaged(self) -> dict[str, Tensor]:
        """The moving average under the parameters' names."""
        names = [name for name, _ in self.unet.named_parameters()]
        return {name: value.cpu().clone() for name, value in zip(names, self.ema, strict=True)}

    def save(self, path: Path) -> None:
        state = {
            "unet": self.unet.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema,
            "seen": self.seen,
            "loss": self.loss,
            "seconds": self.seconds,
            "generator": self.generator.get_state(),
            "text_encoder": self.encoder.state_dict(),
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path, device: torch.device) -> None:
        state = torch.load(path, map_location=device, weights_only=True)
        self.unet.load_state_dict(state["unet"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.encoder.load_state_dict(state["text_encoder"])
        self.ema, self.seen = [value.detach() for value in state["ema"]], state["seen"]
        self.loss, self.seconds = state.get("loss", 0.0), state.get("seconds", 0.0)
        self.generator.set_state(state["generator"].cpu())


def start(options: argparse.Namespace, tokenizer: CLIPTokenizer, pictures: dataset.Pictures) -> Run:
    """Go on from the work folder's state, else from ``--start``, else from nothing."""
    device = torch.device(options.device)
    unet, saved = make_unet(), options.work / "prior.pt"
    if options.start:
        unet.load_state_dict(load_file(options.start / "unet" / "diffusion_pytorch_model.safetensors"))
    if saved.exists() or options.start:
        encoder = make_text_encoder(tokenizer)
    else:
        encoder = train_text_encoder(tokenizer, pictures)
    if options.start:
        encoder.load_state_dict(CLIPTextModel.from_pretrained(options.start / "text_encoder").state_dict())
    unet.to(device=device, memory_format=torch.channels_last)
    encoder.eval().requires_grad_(False).to(device)
    optimiser = torch.optim.AdamW(
        unet.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    ema = [parameter.detach().clone() for parameter in unet.parameters()]
    run = Run(unet, encoder, optimiser, ema, pictures.generator)
    if saved.exists():
        run.load(saved, device)
        print(f"going on at {run.seen} images")
    return run


def train_step(
    run: Run,
    model: Any,
    pictures: dataset.Pictures,
    tokenizer: CLIPTokenizer,
    abar: Tensor,
    n: int,
    exponent: float,
) -> None:
    """One step on ``n`` pictures: v-prediction's squared error, unweighted."""
    device, g = abar.device, run.generator
    batch = pictures.draw(n)
    dropped = torch.rand(n, generator=g) < 0.1
    captions = ["" if d else text for d, text in zip(dropped, pictures.captions(batch), strict=True)]
    with torch.no_grad():
        cond = run.encoder(tokens(tokenizer, captions).to(device)).last_hidden_state
    x = patchify(batch.images.to(device))
    # Stratified over the batch, for less variance.
    u = (torch.arange(n) + torch.rand(n, generator=g)) / n
    t = (u**exponent * 1000).long().clamp(max=999).to(device)
    noise = torch.randn(x.shape, generator=g).to(device)
    alpha, sigma = abar[t].sqrt()[:, None, None, None], (1 - abar[t]).sqrt()[:, None, None, None]
    with torch.autocast(device.type, torch.bfloat16):
        v = model(alpha * x + sigma * noise, t, cond).sample
    loss = (v.float() - (alpha * noise - sigma * x)).square().mean()
    run.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(run.unet.parameters(), 1.0)
    run.optimiser.step()
    run.seen += n
    steps = run.seen / n
    with torch.no_grad():
        decay = min(0.999, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(run.ema, list(run.unet.parameters()), 1 - decay)
    run.loss = 0.99 * run.loss + 0.01 * loss.item() if run.loss else loss.item()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures and training state")
    parser.add_argument("--images", type=int, default=1_000_000, help="pictures to train on, in all")
    parser.add_argument("--minutes", type=float, help="train for so long, in all, and not for --images")
    parser.add_argument(
        "--batch", type=int, default=16,
        help="pictures per update. On a GPU use 512 or more: small batches leave it idle (an H100 trains on 100 pictures a "
        "second with 16, 743 with 128, 2,259 with 512); the default --peak-lr was chosen for 16",
    )  # fmt: skip
    parser.add_argument("--peak-lr", type=float, default=8e-4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="15%% faster after a minute of compiling")
    parser.add_argument("--start", type=Path, help="a prior's folder to go on from, with a new optimiser")
    parser.add_argument("--save-minutes", type=float, default=4)
    parser.add_argument("--output", type=Path, default=SHIPPED, help="prior's folder, rewritten at each save")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    dataset.build(options.work / "pictures", shapes_per_kind=64, seed=0)
    torch.manual_seed(0)
    pictures = dataset.Pictures(options.work / "pictures", torch.Generator().manual_seed(0))
    tokenizer = make_tokenizer()
    run = start(options, tokenizer, pictures)
    print(f"UNet: {sum(p.numel() for p in run.unet.parameters()) / 1e6:.2f}M parameters")

    def save() -> None:
        run.save(options.work / "prior.pt")
        write_folder(options.output, run.averaged(), run.encoder, tokenizer)

    abar = make_scheduler().alphas_cumprod.to(options.device)
    model = torch.compile(run.unet) if options.compile else run.unet
    total = None if options.minutes else options.images
    progress = tqdm(total=total, initial=run.seen, unit="img", mininterval=10)
    saved, began = time.time(), time.time() - run.seconds
    with stop_signals() as stop:
        while not stop.is_set():
            run.seconds = time.time() - began
            done = run.seconds / (60 * options.minutes) if options.minutes else run.seen / options.images
            if done >= 1:
                break
            for group in run.optimiser.param_groups:
                group["lr"] = learning_rate(done, options.peak_lr)
            train_step(run, model, pictures, tokenizer, abar, options.batch, timestep_exponent(done))
            progress.update(options.batch)
            progress.set_postfix(loss=f"{run.loss:.4f}", refresh=False)
            if time.time() - saved > 60 * options.save_minutes:
                save()
                saved = time.time()
    save()
    progress.close()
    print(f"{run.seen} images, loss {run.loss:.4f}; state in {options.work}, prior in {options.output}")


if __name__ == "__main__":
    main()
