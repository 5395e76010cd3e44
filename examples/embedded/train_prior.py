"""Train the embedded prior: a text-conditioned, v-prediction diffusion model of the embedded world.

Run from this folder; interrupt and rerun to go on:
    python train_prior.py --work ~/embedded --images 1000000
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from pathlib import Path

import dataset
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from distill.embedded import world

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

    The text enters twice, as in DeepFloyd IF: pooled into the time embedding, and by cross-attention.
    """
    return UNet2DConditionModel(
        sample_size=dataset.SIZE // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        block_out_channels=(128, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
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


def train_text_encoder(
    tokenizer: CLIPTokenizer, pictures: dataset.Pictures, steps: int = 2000
) -> CLIPTextModel:
    """Align the encoder with pictures: its last token must tell, through one linear layer, the thumbnail.

    Words alone (which colour, kind, view) are not enough: what a view looks like depends on the kind, and a
    UNet that must find that out by itself learns colours and kinds first and hardly ever views.
    """
    encoder = make_text_encoder(tokenizer)
    classes = (len(world.COLOURS), len(world.KINDS), len(world.VIEWS))
    heads = nn.ModuleList([nn.Linear(WIDTH, n) for n in classes])
    draw = nn.Linear(WIDTH, 3 * THUMBNAIL**2)
    parameters = [*encoder.parameters(), *heads.parameters(), *draw.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    progress = tqdm(range(steps), "text encoder")
    for _ in progress:
        batch = pictures.draw(128, darkest=1.0)
        captions = pictures.captions(batch, without_view=0.0)
        hidden = encoder(tokens(tokenizer, captions)).last_hidden_state[:, -1]
        thumbnails = nn.functional.adaptive_avg_pool2d(batch.images, THUMBNAIL)
        picture = nn.functional.mse_loss(draw(hidden), thumbnails.flatten(1))
        named = zip(heads, (batch.colour, batch.kind, batch.view), strict=True)
        words = torch.stack([nn.functional.cross_entropy(head(hidden), y) for head, y in named]).sum()
        optimiser.zero_grad()
        (20 * picture + 0.1 * words).backward()
        optimiser.step()
        schedule.step()
        progress.set_postfix(picture=f"{picture.item():.4f}", words=f"{words.item():.4f}")
    return encoder.eval().requires_grad_(False)


def patchify(images: Tensor) -> Tensor:
    return nn.functional.pixel_unshuffle(images, PATCH).contiguous(memory_format=torch.channels_last)


def learning_rate(done: float, peak: float) -> float:
    """Linear warm-up over 1%, then cosine to 2% of the peak."""
    return peak * min(done / 0.01, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1))))


def write_folder(
    folder: Path, unet_state: dict[str, Tensor], encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> None:
    """Write the diffusers folder layout in fp16 safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    unet = make_unet()
    unet.load_state_dict(unet_state)
    unet.half().save_pretrained(folder / "unet")
    encoder.half().save_pretrained(folder / "text_encoder")
    encoder.float()
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


def save_state(path: Path, state: dict[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures and training state")
    parser.add_argument("--images", type=int, default=1_000_000, help="pictures to train on, in all")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak-lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--compile", action="store_true", help="about 15%% faster after a minute of compiling"
    )
    parser.add_argument("--start", type=Path, help="a prior's folder whose UNet to start from")
    parser.add_argument("--save-minutes", type=float, default=4)
    parser.add_argument(
        "--output", type=Path, default=SHIPPED, help="the prior's folder, rewritten at each save"
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    dataset.build(options.work / "pictures", shapes_per_kind=64, seed=0)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    pictures = dataset.Pictures(options.work / "pictures", generator)
    tokenizer = make_tokenizer()
    unet = make_unet().to(device=device, memory_format=torch.channels_last)
    print(f"UNet: {sum(p.numel() for p in unet.parameters()) / 1e6:.2f}M parameters")
    if options.start:
        unet.load_state_dict(load_file(options.start / "unet" / "diffusion_pytorch_model.safetensors"))
    optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01)
    ema = [p.detach().clone() for p in unet.parameters()]
    seen, history = 0, []

    state_path = options.work / "prior.pt"
    if state_path.exists():
        state = torch.load(state_path, map_location=device, weights_only=True)
        unet.load_state_dict(state["unet"])
        optimiser.load_state_dict(state["optimiser"])
        ema, seen, history = [p.detach() for p in state["ema"]], state["seen"], state["history"]
        generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["torch_rng"].cpu())
        encoder = make_text_encoder(tokenizer)
        encoder.load_state_dict(state["text_encoder"])
        encoder.eval().requires_grad_(False)
        print(f"resuming at {seen} images")
    else:
        encoder = train_text_encoder(tokenizer, pictures)
    encoder.to(device)

    def save() -> None:
        state = {
            "unet": unet.state_dict(),
            "optimiser": optimiser.state_dict(),
            "ema": ema,
            "seen": seen,
            "history": history,
            "generator": generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "text_encoder": encoder.state_dict(),
        }
        save_state(state_path, state)
        names = [name for name, _ in unet.named_parameters()]
        averaged = {name: value.cpu().clone() for name, value in zip(names, ema, strict=True)}
        write_folder(options.output, averaged, encoder.cpu(), tokenizer)
        encoder.to(device)

    stop = False

    def request_stop(*_: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGINT, request_stop)
    signal.signal(signal.SIGTERM, request_stop)

    abar = make_scheduler().alphas_cumprod.to(device)
    model = torch.compile(unet) if options.compile else unet
    progress = tqdm(total=options.images, initial=seen, unit="img", mininterval=10)
    saved, running = time.time(), 0.0
    while seen < options.images and not stop:
        batch = pictures.draw(options.batch)
        captions = pictures.captions(batch)
        dropped = torch.rand(options.batch, generator=generator) < 0.1
        captions = ["" if drop else text for drop, text in zip(dropped, captions, strict=True)]
        with torch.no_grad():
            cond = encoder(tokens(tokenizer, captions).to(device)).last_hidden_state
        x = patchify(batch.images.to(device))
        # Stratified over the batch, for less variance, and leaning to noisy timesteps, where shapes are decided.
        u = (torch.arange(options.batch) + torch.rand(options.batch, generator=generator)) / options.batch
        t = (u**0.7 * 1000).long().clamp(max=999).to(device)
        noise = torch.randn(x.shape, generator=generator).to(device)
        alpha, sigma = abar[t].sqrt()[:, None, None, None], (1 - abar[t]).sqrt()[:, None, None, None]
        with torch.autocast(device.type, torch.bfloat16):
            v = model(alpha * x + sigma * noise, t, cond).sample
        loss = (v.float() - (alpha * noise - sigma * x)).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(seen / options.images, options.peak_lr)
        optimiser.step()
        seen += options.batch
        steps = seen / options.batch
        decay = min(0.999, (1 + steps) / (10 + steps))
        with torch.no_grad():
            torch._foreach_lerp_(ema, list(unet.parameters()), 1 - decay)
        running = 0.99 * running + 0.01 * loss.item() if running else loss.item()
        progress.update(options.batch)
        progress.set_postfix(loss=f"{running:.4f}", refresh=False)
        if time.time() - saved > 60 * options.save_minutes:
            history.append([seen, running])
            save()
            saved = time.time()
    save()
    progress.close()
    print(f"{seen} images, loss {running:.4f}; state in {state_path}, prior in {options.output}")


if __name__ == "__main__":
    main()
