"""MVDream as its authors' file has it, written down plainly, at tiny size with random weights.

The modules' names are those of Latent Diffusion's layout, so that `state_dict` is a published
file's; their forward passes are what the converted teacher is compared with.
"""

import math
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

HEAD = 64
TEXT = 64
CHANNELS = (128, 192)
VAE_CHANNELS = (32, 64)
LETTERS = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
WORDS = ["!", *LETTERS, "<|startoftext|>", "<|endoftext|>"]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of q [B, L, D] over k and v [B, M, D], head by head."""

    def split(x: Tensor) -> Tensor:
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    q, k, v = split(q), split(k), split(v)
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(3)
    return (weights @ v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.to_out(attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        gate = nn.Module()
        gate.proj = nn.Linear(width, 8 * width)
        self.net = nn.Sequential(gate, nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        gate: Any = self.net[0]
        value, by = gate.proj(x).chunk(2, dim=-1)
        return self.net[2](value * F.gelu(by))


class Block3D(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn1 = Attention(width, width, heads)
        self.ff = FeedForward(width)
        self.attn2 = Attention(width, TEXT, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, text: Tensor, views: int) -> Tensor:
        length = x.shape[1]
        x = x.reshape(-1, views * length, x.shape[2])  # (object, view x place, width)
        x = x + self.attn1(self.norm1(x), self.norm1(x))
        x = x.reshape(-1, length, x.shape[2])
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))


class SpatialTransformer3D(nn.Module):
    def __init__(self, width: int, linear: bool) -> None:
        super().__init__()
        heads = width // HEAD if linear else 8
        self.linear = linear
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([Block3D(width, heads)])
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, text: Tensor, views: int) -> Tensor:
        size, residual = x.shape[2:], x
        x = self.norm(x)
        x = x if self.linear else self.proj_in(x)
        x = x.flatten(2).transpose(1, 2)
        x = self.proj_in(x) if self.linear else x
        x = self.transformer_blocks[0](x, text, views)
        x = self.proj_out(x) if self.linear else x
        x = x.transpose(1, 2).unflatten(2, size)
        return residual + (x if self.linear else self.proj_out(x))


class ResBlock(nn.Module):
    def __init__(self, width: int, out: int, embedding: int) -> None:
        super().__init__()
        first, second = nn.GroupNorm(32, width), nn.GroupNorm(32, out)
        self.in_layers = nn.Sequential(first, nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out))
        last = nn.Conv2d(out, out, 3, padding=1)
        self.out_layers = nn.Sequential(second, nn.SiLU(), nn.Dropout(0), last)
        self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)


def run(parts: Any, x: Tensor, embedding: Tensor, text: Tensor, views: int) -> Tensor:
    for part in parts:
        match part:
            case ResBlock():
                x = part(x, embedding)
            case SpatialTransformer3D():
                x = part(x, text, views)
            case Downsample():
                x = part.op(x)
            case Upsample():
                x = part.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            case _:
                x = part(x)
    return x


class UNet(nn.Module):
    """Two levels of one block each; the finer one attends where `linear` (Stable Diffusion 2)."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        fine, coarse = CHANNELS
        emb = 4 * fine

        def attention(width: int) -> SpatialTransformer3D:
            return SpatialTransformer3D(width, linear)

        fine_attention = [attention(fine)] if linear else []
        self.time_embed = nn.Sequential(nn.Linear(fine, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.camera_embed = nn.Sequential(nn.Linear(16, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.input_blocks = nn.ModuleList(
            nn.ModuleList(parts)
            for parts in (
                [nn.Conv2d(4, fine, 3, padding=1)],
                [ResBlock(fine, fine, emb), *fine_attention],
                [Downsample(fine)],
                [ResBlock(fine, coarse, emb), attention(coarse)],
            )
        )
        self.middle_block = nn.ModuleList(
            [ResBlock(coarse, coarse, emb), attention(coarse), ResBlock(coarse, coarse, emb)]
        )
        fine_attentions = [[attention(fine)] if linear else [] for _ in range(2)]
        self.output_blocks = nn.ModuleList(
            nn.ModuleList(parts)
            for parts in (
                [ResBlock(2 * coarse, coarse, emb), attention(coarse)],
                [ResBlock(coarse + fine, coarse, emb), attention(coarse), Upsample(coarse)],
                [ResBlock(coarse + fine, fine, emb), *fine_attentions[0]],
                [ResBlock(2 * fine, fine, emb), *fine_attentions[1]],
            )
        )
        self.out = nn.Sequential(
            nn.GroupNorm(32, fine), nn.SiLU(), nn.Conv2d(fine, 4, 3, padding=1)
        )

    def forward(
        self, x: Tensor, timestep: Tensor, text: Tensor, camera: Tensor | None, views: int
    ) -> Tensor:
        half = CHANNELS[0] // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half) / half)
        angles = timestep[:, None] * rates
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1).to(x))
        if camera is not None:
            embedding = embedding + self.camera_embed(camera)
        passed = []
        for parts in self.input_blocks:
            x = run(parts, x, embedding, text, views)
            passed.append(x)
        x = run(self.middle_block, x, embedding, text, views)
        for parts in self.output_blocks:
            x = run(parts, torch.cat([x, passed.pop()], dim=1), embedding, text, views)
        return self.out(x)


class VaeResBlock(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, width, eps=1e-6), nn.Conv2d(width, out, 3, 1, 1)
        self.norm2, self.conv2 = nn.GroupNorm(32, out, eps=1e-6), nn.Conv2d(out, out, 3, 1, 1)
        if width != out:
            self.nin_shortcut = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class VaeAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.proj_out(attend(q, k, v, 1).transpose(1, 2).unflatten(2, x.shape[2:]))


class VaeHalf(nn.Module):
    """Encoder (`down`, levels from the pixels) or decoder (`up`, levels from the pixels too)."""

    def __init__(self, way: str, channels: int, out: int) -> None:
        super().__init__()
        fine, coarse = VAE_CHANNELS
        self.way = way
        first, last = (fine, coarse) if way == "down" else (coarse, fine)
        self.conv_in = nn.Conv2d(channels, first, 3, padding=1)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.block_2 = (
            VaeResBlock(coarse, coarse),
            VaeResBlock(coarse, coarse),
        )
        self.mid.attn_1 = VaeAttention(coarse)
        levels = [nn.Module(), nn.Module()]
        if way == "down":
            levels[0].block = nn.ModuleList([VaeResBlock(fine, fine)])
            levels[0].downsample = nn.Module()
            levels[0].downsample.conv = nn.Conv2d(fine, fine, 3, stride=2)
            levels[1].block = nn.ModuleList([VaeResBlock(fine, coarse)])
            self.down = nn.ModuleList(levels)
        else:
            levels[1].block = nn.ModuleList([VaeResBlock(coarse, coarse) for _ in range(2)])
            levels[1].upsample = nn.Module()
            levels[1].upsample.conv = nn.Conv2d(coarse, coarse, 3, padding=1)
            levels[0].block = nn.ModuleList([VaeResBlock(coarse, fine), VaeResBlock(fine, fine)])
            self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(32, last, eps=1e-6)
        if way == "down":
            self.norm_out = nn.GroupNorm(32, coarse, eps=1e-6)
        self.conv_out = nn.Conv2d(coarse if way == "down" else fine, out, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        mid: Any = self.mid
        return mid.block_2(mid.attn_1(mid.block_1(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        levels: Any = self.down if self.way == "down" else reversed(list(self.up))
        x = x if self.way == "down" else self.middle(x)
        for level in levels:
            for block in level.block:
                x = block(x)
            if hasattr(level, "downsample"):
                x = level.downsample.conv(F.pad(x, (0, 1, 0, 1)))
            if hasattr(level, "upsample"):
                x = level.upsample.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self.middle(x) if self.way == "down" else x
        return self.conv_out(F.silu(self.norm_out(x)))


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = VaeHalf("down", 3, 8), VaeHalf("up", 4, 3)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)

    def mean(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x)).chunk(2, dim=1)[0]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


class TextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // HEAD, batch_first=True)
        self.mlp = nn.Module()
        self.mlp.c_fc, self.mlp.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mlp: Any = self.mlp
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1).to(x)
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + mlp.c_proj(F.gelu(mlp.c_fc(self.ln_2(x))))


class TextTower(nn.Module):
    """OpenCLIP's, read before its last block."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(len(WORDS), TEXT)
        self.positional_embedding = nn.Parameter(torch.randn(77, TEXT))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([TextBlock(TEXT) for _ in range(3)])
        self.ln_final = nn.LayerNorm(TEXT)
        self.text_projection = nn.Parameter(torch.randn(TEXT, TEXT))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        transformer: Any = self.transformer
        x = self.token_embedding(ids) + self.positional_embedding
        for block in list(transformer.resblocks)[:-1]:
            x = block(x)
        return self.ln_final(x)


class Reference(nn.Module):
    """The whole of `sd-v2.1-base-4view.pt`, but for its size."""

    def __init__(self, linear: bool = True) -> None:
        super().__init__()
        self.model, self.cond_stage_model = nn.Module(), nn.Module()
        self.model.diffusion_model = UNet(linear)
        self.first_stage_model = Vae()
        self.cond_stage_model.model = TextTower()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.register_buffer("betas", betas.float())
        self.register_buffer("alphas_cumprod", (1 - betas).cumprod(0).float())
        for parameter in self.parameters():
            if parameter.ndim == 1:  # norms and biases begin as ones and zeros
                parameter.data += 0.2 * torch.randn_like(parameter)

    @property
    def unet(self) -> Any:
        return self.model.diffusion_model

    @property
    def text(self) -> Any:
        return self.cond_stage_model.model


@pytest.fixture(scope="session")
def reference() -> Reference:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Reference().requires_grad_(False)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer's folder as Stable Diffusion has it: letters are all that it knows."""
    folder = tmp_path_factory.mktemp("vocabulary")
    words = {word: i for i, word in enumerate(WORDS)}
    CLIPTokenizer(vocab=words, merges=[], model_max_length=77).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def published(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file as the authors publish theirs."""
    path = tmp_path_factory.mktemp("published") / "sd-v2.1-base-4view.pt"
    torch.save(reference.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def converted(published: Path, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's folder that the command makes of it."""
    from core.teachers.convert_mvdream import main

    folder = tmp_path_factory.mktemp("converted") / "mvdream"
    assert main([str(published), str(folder), "--tokenizer", str(vocabulary)]) == 0
    return folder


@pytest.fixture(scope="session")
def first_generation() -> Callable[[], Reference]:
    """A reference whose UNet is that of Stable Diffusion 1."""

    def make() -> Reference:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return Reference(linear=False).requires_grad_(False)

    return make
