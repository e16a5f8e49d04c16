"""Train the embedded teacher on the toybox world.

    python scripts/train_toybox_teacher.py --preset cpu
    python scripts/train_toybox_teacher.py --preset gpu --minutes 15

Killed at any moment and started again with the same command, it goes on from its last state and
reaches the same weights, bit for bit on the same machine. The text encoder learns to read first
(a minute, begun anew if it is killed there) and is frozen then. Images are rendered once into a
cache (the same images from the same seed) by a thread beside the training.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.teachers.toybox import weights_sha256
from core.teachers.toybox_network import (
    MAX_TOKENS,
    ToyboxNetwork,
    channels_last,
    load_network,
    make_network,
    make_tokenizer,
    save_network,
)
from sds3d.toybox.captions import plain_caption, sample_caption, vocabulary
from sds3d.toybox.colors import COLOR_NAMES, COLOR_SYNONYMS
from sds3d.toybox.kinds import KIND_NAMES, KINDS, SUPPORTS
from sds3d.toybox.reading import teach_reading
from sds3d.toybox.scenes import SceneSpec
from toybox_views import ImageCache


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training; the presets fill it, any flag overrides.

    Attributes:
        out: Folder of state, cache, sample sheets and the exported teacher.
        init: A teacher's folder to start from when there is no state yet.
        steps: Optimiser steps in all, the decay included.
        decay_steps: The last so many steps fall linearly to zero learning rate.
        batch: Images a step.
        images: Size of the image cache.
        images_at_start, images_per_step: How many of the cache a step may draw from: at step k
            the first `images_at_start + k * images_per_step`, so that training starts early and
            stays reproducible.
        learning_rate, warmup_steps, weight_decay, ema_decay: AdamW and its average.
        reading_steps, reading_batch, reading_learning_rate: The text encoder's own training.
        logit_mean, logit_std: Logit-normal timesteps, arXiv 2403.03206 Section 3.1.
        text_dropout, camera_dropout: Independent shares of unconditional training.
        view_words: Share of the captions that name the view.
        minutes: Stop after so many minutes (state saved), 0 for no limit.
        render_threads: Threads that fill the cache.
        compile: Compile the training step; on a CPU this needs a C++ compiler.
    """

    out: Path = Path(".training/toybox")
    init: Path | None = None
    steps: int = 16_000
    decay_steps: int = 6_000
    batch: int = 64
    images: int = 100_000
    images_at_start: int = 6_000
    images_per_step: int = 10
    learning_rate: float = 8e-4
    warmup_steps: int = 300
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    reading_steps: int = 600
    reading_batch: int = 128
    reading_learning_rate: float = 2e-3
    logit_mean: float = 1.0
    logit_std: float = 1.1
    text_dropout: float = 0.1
    camera_dropout: float = 0.2
    view_words: float = 0.5
    seed: int = 0
    minutes: float = 0.0
    render_threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False
    save_every_s: float = 600.0
    sheet_every: int = 1000


PRESETS = {
    "cpu": TrainConfig(),
    "gpu": TrainConfig(
        steps=40_000,
        decay_steps=8_000,
        batch=512,
        images=600_000,
        images_at_start=30_000,
        images_per_step=60,
        learning_rate=1e-3,
        warmup_steps=500,
        ema_decay=0.9995,
        render_threads=max(1, (os.cpu_count() or 2) - 2),
        compile=True,
        sheet_every=2000,
        device="cuda",
    ),
}


@dataclass(frozen=True)
class Batch:
    """x0 [B, 3, 64, 64] in [-1, 1], tokens [B, L], camera [B, 2] in degrees or NaN, t [B], eps."""

    x0: Tensor
    tokens: Tensor
    camera: Tensor
    t: Tensor
    eps: Tensor


def _background(rng: np.random.Generator) -> np.ndarray:
    """White (33 %), a grey (27 %), or any colour (40 %)."""
    form = rng.uniform()
    if form < 0.33:
        return np.ones(3)
    return np.full(3, rng.uniform()) if form < 0.6 else rng.uniform(size=3)


def make_batch(config: TrainConfig, cache: ImageCache, tokenizer, step: int) -> Batch:
    """The batch of a step: a function of (seed, step) alone."""
    available = min(config.images, config.images_at_start + step * config.images_per_step)
    cache.wait_for(available)
    rng = np.random.default_rng([config.seed, 7, step])
    index = np.sort(rng.integers(available, size=config.batch))
    rgba = cache.images[index].astype(np.float32) / 255.0
    ground = np.stack([_background(rng) for _ in index]).astype(np.float32)
    rgb = rgba[..., :3] + (1.0 - rgba[..., 3:]) * ground[:, None, None]
    captions = []
    for i in index:
        spec = cache.specs[i]
        assert spec is not None
        azimuth, elevation = cache.cameras[i]
        view = (float(azimuth), float(elevation)) if rng.uniform() < config.view_words else None
        dropped = rng.uniform() < config.text_dropout
        captions.append("" if dropped else sample_caption(spec, rng, view=view))
    camera = cache.cameras[index].copy()
    camera[rng.uniform(size=len(index)) < config.camera_dropout] = np.nan
    tokens = tokenizer(
        captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids
    t = 1.0 / (1.0 + np.exp(-rng.normal(config.logit_mean, config.logit_std, size=len(index))))
    eps = rng.standard_normal((len(index), 3, 64, 64), dtype=np.float32)
    return Batch(
        x0=torch.from_numpy(rgb.transpose(0, 3, 1, 2).copy() * 2.0 - 1.0),
        tokens=tokens,
        camera=torch.from_numpy(camera),
        t=torch.from_numpy(t.astype(np.float32)),
        eps=torch.from_numpy(eps),
    )


def batches(
    config: TrainConfig, cache: ImageCache, tokenizer, first: int
) -> Generator[Batch, None, None]:
    """Batches from step `first` on, prepared by a few threads ahead of the training."""
    ahead = 3 if config.device == "cpu" else 12
    workers = 1 if config.device == "cpu" else 6
    with ThreadPoolExecutor(workers) as pool:
        queue = [
            pool.submit(make_batch, config, cache, tokenizer, s)
            for s in range(first, first + ahead)
        ]
        step = first + ahead
        while True:
            yield queue.pop(0).result()
            queue.append(pool.submit(make_batch, config, cache, tokenizer, step))
            step += 1


def learning_rate(config: TrainConfig, step: int) -> float:
    """Warm-up, constant, then linear to zero over the last `decay_steps`."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    left = (config.steps - step) / max(1, config.decay_steps)
    return config.learning_rate * warm * min(1.0, max(left, 0.0))


def velocity_loss(network: ToyboxNetwork, batch: Batch, text: Tensor) -> Tensor:
    """Mean of ((x0_hat - x0) / max(t, 0.1))^2: the error of the flow's velocity eps - x0.

    arXiv 2511.13720, Table 1 (x-prediction with v-loss); z = (1 - t) x0 + t eps here.
    """
    t = batch.t[:, None, None, None]
    x_t = (1.0 - t) * batch.x0 + t * batch.eps
    x0 = network(x_t, batch.t, text, batch.camera)
    return ((x0.float() - batch.x0) / t.clamp_min(0.1)).square().mean()


class State:
    """Weights, their average and Adam's moments; saved whole, under a temporary name first."""

    def __init__(self, network: ToyboxNetwork, config: TrainConfig) -> None:
        self.network = network
        self.trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.ema = {n: p.detach().clone() for n, p in self.trained.items()}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.step = 0
        self.seconds = 0.0

    def update_ema(self, decay: float) -> None:
        decay = min(decay, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            for name, p in self.trained.items():
                self.ema[name].lerp_(p, 1.0 - decay)

    def save(self, path: Path) -> None:
        tensors = {f"ema.{n}": v for n, v in self.ema.items()}
        for name, p in self.network.named_parameters():
            tensors[f"model.{name}"] = p.detach()
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"adam.{key}.{name}"] = value
        tensors = {k: v.contiguous() for k, v in tensors.items()}
        partial = path.with_suffix(".partial")
        meta = {"step": str(self.step), "seconds": str(self.seconds)}
        save_file(tensors, partial, metadata=meta)
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.replace(path)

    def load(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as handle:
            meta = handle.metadata()
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        tensors = load_file(path)
        with torch.no_grad():
            for name, p in self.network.named_parameters():
                p.copy_(tensors[f"model.{name}"])
            for name, p in self.trained.items():
                self.ema[name].copy_(tensors[f"ema.{name}"])
                # In the parameter's memory layout: the fused kernel pairs elements by their place.
                moments = {
                    key: torch.empty_like(p).copy_(tensors[f"adam.{key}.{name}"])
                    for key in ("exp_avg", "exp_avg_sq")
                }
                # The fused kernel reads the step where the parameter is.
                step = tensors[f"adam.step.{name}"].to(p.device)
                self.optimizer.state[p] = {"step": step, **moments}

    def averaged(self) -> ToyboxNetwork:
        """A network with the averaged weights, for samples and for shipping."""
        network = make_network(self.network.text_encoder.config.vocab_size)
        network.to(next(self.network.parameters()).device)
        channels_last(network)
        with torch.no_grad():
            network.load_state_dict(self.network.state_dict())
            for name, p in network.named_parameters():
                if name in self.ema:
                    p.copy_(self.ema[name])
        return network.eval()


@torch.no_grad()
def sample_sheet(network: ToyboxNetwork, tokenizer, path: Path, *, device: str) -> None:
    """Ten fixed prompts from four azimuths, 24 Euler steps, guidance 3."""
    prompts = [
        "a red mushroom", "a pink duck", "a yellow car", "a blue chair with white legs",
        "an orange mug", "a green house", "a blue teapot", "a purple airplane",
        "a white cat on a red cube", "a gray robot",
    ]  # fmt: skip
    azimuths = [0.0, 60.0, 120.0, 180.0, 270.0]
    views = len(azimuths)
    tokens = tokenizer(
        [p for p in prompts for _ in azimuths] + [""],
        padding="max_length", max_length=MAX_TOKENS, return_tensors="pt",
    ).input_ids.to(device)  # fmt: skip
    text = network.encode_tokens(tokens)
    n = len(prompts) * views
    camera = torch.tensor([[a, 20.0] for _ in prompts for a in azimuths], device=device)
    x = torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(device)
    times = torch.linspace(1.0, 0.0, 25)
    text2 = torch.cat([text[:-1], text[-1:].expand(n, -1, -1)])
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        both = network(
            torch.cat([x, x]), torch.full((2 * n,), t, device=device), text2, camera.repeat(2, 1)
        )
        cond, uncond = both.chunk(2)
        x0 = (uncond + 3.0 * (cond - uncond)).clamp(-1, 1)
        x = x0 + (s / t) * (x - x0)
    grid = x.reshape(2, 5, views, 3, 64, 64).permute(1, 4, 0, 2, 5, 3).reshape(5 * 64, -1, 3)
    pixels = ((grid.cpu().numpy() * 0.5 + 0.5).clip(0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def words(config: TrainConfig) -> dict[str, object]:
    """What the loader needs to know of the world to explain itself: names, never shapes."""
    return {
        "takes_camera": config.camera_dropout < 1,
        "kinds": {k: list(KINDS[k].synonyms) for k in KIND_NAMES},
        "colors": {c: list(COLOR_SYNONYMS[c]) for c in COLOR_NAMES},
        "parts": {k: list(KINDS[k].parts) for k in KIND_NAMES},
        "supports": list(SUPPORTS),
        "example": plain_caption(SceneSpec(kind="mushroom", color="red")),
    }


def export(state: State, config: TrainConfig, tokenizer, folder: Path) -> ToyboxNetwork:
    """Write the averaged network as a teacher's folder, with the hash that pins its weights."""
    averaged = state.averaged()
    save_network(averaged, tokenizer, words(config), folder)
    (folder / "weights.sha256").write_text(weights_sha256(folder) + "\n")
    return averaged


def read_captions(config: TrainConfig, network: ToyboxNetwork, tokenizer) -> None:
    """Train the text encoder alone, on captions and what they say."""
    device = next(network.parameters()).device

    def encode(captions: list[str]) -> Tensor:
        tokens = tokenizer(
            captions, padding="max_length", truncation=True, max_length=MAX_TOKENS,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        return network.encode_tokens(tokens.to(device))[:, 0]

    def progress(step: int, loss: float, right: float) -> None:
        print(f"reading: step {step}, loss {loss:.4f}, {right:.1%} right", file=sys.stderr)

    right = teach_reading(
        network.text_encoder,
        encode,
        steps=config.reading_steps,
        batch=config.reading_batch,
        learning_rate=config.reading_learning_rate,
        seed=config.seed,
        progress=progress,
    )
    print(f"the text encoder reads {right:.2%} of new captions without a fault", file=sys.stderr)


def train(config: TrainConfig) -> int:
    """Train to the end, to the time limit or to a signal. Returns the exit code."""
    if config.device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        config = replace(config, device=device)
    device = config.device
    if device == "cpu":
        # At so few tokens plain matrix products beat the fused attention's backward.
        torch.backends.cuda.enable_flash_sdp(False)
    torch.manual_seed(config.seed)
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "config.json").write_text(
        json.dumps({k: str(v) for k, v in vars(config).items()}, indent=1) + "\n"
    )
    tokenizer = make_tokenizer(vocabulary())
    network = make_network(len(tokenizer))
    if config.init is not None:
        loaded, _ = load_network(config.init)
        network.load_state_dict(loaded.state_dict())
    channels_last(network.to(device))
    path = config.out / "state.safetensors"
    if config.init is None and not path.exists():
        read_captions(config, network, tokenizer)
    network.text_encoder.requires_grad_(False)
    count = sum(p.numel() for p in network.parameters())
    state = State(network, config)
    if path.exists():
        state.load(path)
    print(f"{count / 1e6:.2f} M parameters, {device}, from step {state.step}", file=sys.stderr)
    cache = ImageCache(config.out / "cache", config.images, config.seed, config.render_threads)
    forward = torch.compile(velocity_loss, dynamic=False) if config.compile else velocity_loss
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    start = time.monotonic()
    before, saved, window = state.seconds, start, [(start, state.step)]
    losses: list[Tensor] = []
    source = batches(config, cache, tokenizer, state.step)
    while state.step < config.steps and not stop.is_set():
        batch = next(source)
        batch = Batch(
            *(getattr(batch, f).to(device) for f in ("x0", "tokens", "camera", "t", "eps"))
        )
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config, state.step)
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                text = network.encode_tokens(batch.tokens)
            loss = forward(network, batch, text)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.trained.values(), 1.0)
        state.optimizer.step()
        state.step += 1
        state.update_ema(config.ema_decay)
        losses.append(loss.detach())
        now = time.monotonic()
        state.seconds = before + now - start
        if state.step % 50 == 0 or state.step == config.steps:
            mean = float(torch.stack(losses).mean())
            losses.clear()
            rate = (state.step - window[0][1]) / max(now - window[0][0], 1e-9)
            window = [*window, (now, state.step)][-6:]
            eta = (config.steps - state.step) / max(rate, 1e-9)
            if not math.isfinite(mean):
                print("the loss is not finite; the last saved state is kept", file=sys.stderr)
                return 1
            line = {
                "step": state.step,
                "loss": round(mean, 5),
                "images_per_s": round(rate * config.batch, 1),
                "seconds": round(state.seconds, 1),
            }
            with (config.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(f"{line}  ETA {eta / 60:.1f} min", file=sys.stderr, flush=True)
        if state.step % config.sheet_every == 0:
            averaged = export(state, config, tokenizer, config.out / "teacher")
            sheet = config.out / f"samples-{state.step:06d}.png"
            with torch.autocast(device, torch.bfloat16):
                sample_sheet(averaged, tokenizer, sheet, device=device)
        if now - saved > config.save_every_s:
            state.save(path)
            saved = time.monotonic()
        if config.minutes and now - start > 60 * config.minutes:
            break
    state.save(path)
    export(state, config, tokenizer, config.out / "teacher")
    source.close()
    cache.close()
    print(f"step {state.step}: state and teacher in {config.out}", file=sys.stderr)
    return 0


def main() -> None:
    # The preset is read first: it holds the defaults of all the other options.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    chosen, rest = parser.parse_known_args()
    config = tyro.cli(TrainConfig, default=PRESETS[chosen.preset], args=rest)
    raise SystemExit(train(config))


if __name__ == "__main__":
    main()
