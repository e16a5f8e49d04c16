"""The embedded teacher with guidance built in: one pass says what two said.

A student of the toybox teacher takes the guidance scale as one more input (Flux's own guidance
embedder) and predicts uncond + w (cond - uncond) (arXiv 2210.03142, Section 3.1), where uncond is
without text and without camera. It differs from its teacher by little: a low-rank term in every
linear layer (LoRA, arXiv 2106.09685, Section 4.1), the embedder, and the three convolutions. Only
that is on disk, tied by hash to the weights that it was trained on.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.denoiser import Conditioning
from core.out_of_memory import raise_shortage
from core.prediction import Prediction
from core.teachers.errors import TeacherWeightsError
from core.teachers.toybox import ToyboxTeacher, fast_dtype, weights_sha256
from core.teachers.toybox_network import ToyboxNetwork, channels_last

__all__ = [
    "CLASS_NAME",
    "GuidedToyboxTeacher",
    "LowRankLinear",
    "ToyboxStudent",
    "load_guided",
    "save_guided",
]

CLASS_NAME = "GuidedToyboxTeacher"
FORMAT = "sds3d-toybox-guided/1"
COMPONENT = "delta"
INDEX = "model_index.json"
WEIGHTS = f"{COMPONENT}/diffusion_pytorch_model.safetensors"
CONFIG = f"{COMPONENT}/config.json"
RANK = 32

_EMBEDDER = "time_text_embed.guidance_embedder"


class LowRankLinear(nn.Module):
    """A frozen linear layer whose weight is W + B A, at first W itself.

    lora_A [rank, in] and lora_B [out, rank] are the trained ones.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        weight = base.weight
        self.lora_A = nn.Parameter(weight.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(), self.base.bias)

    def weight(self) -> Tensor:
        """W + B A, in full precision under autocast too: it is what will be merged."""
        with torch.autocast(self.lora_A.device.type, enabled=False):
            return self.base.weight + self.lora_B @ self.lora_A

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The linear layer that does the same."""
        layer = copy.deepcopy(self.base)
        layer.weight.copy_(self.weight())
        return layer


class ToyboxStudent(nn.Module):
    """A trainable copy of the teacher's network, by what it adds to it; a core.networks.Network.

    Its raw output is x0, at first the teacher's own conditional prediction. Low-rank terms, the
    convolutions and, with `reads_guidance_scale`, the embedder of cond.guidance_scale are trained;
    nothing else requires a gradient. The initial weights are drawn from torch's global generator.
    """

    def __init__(
        self,
        base: ToyboxNetwork,
        *,
        rank: int = RANK,
        reads_guidance_scale: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`dtype` is that of the matrix products, by default the teacher's own."""
        super().__init__()
        self.reads_guidance_scale = reads_guidance_scale
        self.dtype = dtype or fast_dtype(base.position.device)
        network = _embedding_copy(base) if reads_guidance_scale else copy.deepcopy(base)
        self.network = network.float().requires_grad_(False)
        _replace(network.transformer, nn.Linear, lambda layer: LowRankLinear(layer, rank))
        network.refiner.requires_grad_(True)
        if reads_guidance_scale:
            network.transformer.get_submodule(_EMBEDDER).requires_grad_(True)
        channels_last(network)

    def forward(
        self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditioning | None = None
    ) -> Tensor:
        """x0 [B, 3, 64, 64] from x [B, 3, 64, 64] and t [B]; `s` is read by no one.

        Raises ValueError where cond.text, or a guidance scale that it reads, is missing.
        """
        if cond is None or cond.text is None:
            raise ValueError("This network reads cond.text, and it is missing.")
        if self.reads_guidance_scale and cond.guidance_scale is None:
            raise ValueError("This network reads cond.guidance_scale, and it is missing.")
        camera = cond.camera
        if camera is None:
            camera = torch.full((len(x), 2), torch.nan, device=x.device)
        scale = cond.guidance_scale if self.reads_guidance_scale else None
        precise = self.dtype == torch.float32
        with (
            # At so few tokens plain matrix products beat the fused attention's backward.
            sdpa_kernel(SDPBackend.MATH) if x.device.type == "cpu" else nullcontext(),
            nullcontext() if precise else torch.autocast(x.device.type, self.dtype),
        ):
            return self.network(x, t, cond.text, camera, scale)

    def delta(self) -> dict[str, Tensor]:
        """What it adds to the teacher, by the names in the file."""
        names = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        return {_public(name): p.detach() for name, p in names.items()}

    def load_delta(self, tensors: dict[str, Tensor]) -> None:
        """Take what `delta` gave. Raises ValueError that names what is missing or left over."""
        own = {_public(n): p for n, p in self.network.named_parameters() if p.requires_grad}
        if unlike := sorted(own.keys() ^ tensors.keys()):
            raise ValueError(f"{unlike[0]} is missing or left over")
        for name, parameter in own.items():
            if tensors[name].shape != parameter.shape:
                raise ValueError(
                    f"{name} has the shape {list(tensors[name].shape)}, not {list(parameter.shape)}"
                )
            if not tensors[name].isfinite().all():
                raise ValueError(f"{name} holds numbers that are not finite")
            parameter.data.copy_(tensors[name])

    def merged(self) -> ToyboxNetwork:
        """A network with the low-rank terms added in, as fast as the teacher's."""
        network = copy.deepcopy(self.network)
        _replace(network.transformer, LowRankLinear, LowRankLinear.merged)
        return channels_last(network)


def _public(name: str) -> str:
    """A trained parameter's name as peft's files have it."""
    return name.replace("lora_A", "lora_A.weight").replace("lora_B", "lora_B.weight")


def _replace(root: nn.Module, kind: type[Any], make: Callable[[Any], nn.Module]) -> None:
    """Put make(layer) in the place of every layer of a kind but the guidance embedder's own."""
    for name, layer in [*root.named_modules()]:
        if isinstance(layer, kind) and not name.startswith(_EMBEDDER):
            root.set_submodule(name, make(layer))


def _embedding_copy(base: ToyboxNetwork) -> ToyboxNetwork:
    """`base` with a guidance embedder that at first changes nothing."""
    config = {k: v for k, v in base.transformer.config.items() if not k.startswith("_")}
    transformer = FluxTransformer2DModel(**{**config, "guidance_embeds": True})
    embedder = transformer.get_submodule(_EMBEDDER)
    last = embedder.get_submodule("linear_2")
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    own = {f"{_EMBEDDER}.{name}": value for name, value in embedder.state_dict().items()}
    transformer.load_state_dict({**base.transformer.state_dict(), **own})
    # The text encoder is shared: neither of the two ever trains it.
    made = ToyboxNetwork(transformer, copy.deepcopy(base.refiner), base.text_encoder)
    return made.to(base.position.device).eval()


def save_guided(
    student: ToyboxStudent,
    folder: Path,
    *,
    base_sha256: str,
    guidance_scales: tuple[float, float],
) -> None:
    """Write a folder that `GuidedToyboxTeacher.load` reads: fp16 safetensors, and what they are of.

    Args:
        student: One that reads a guidance scale.
        folder: Made where it is missing; weights.sha256 in it pins what was written.
        base_sha256: Of the teacher that it was trained on.
        guidance_scales: The least and the largest that it was trained with.
    """
    if not student.reads_guidance_scale:
        raise ValueError("Only a student that reads a guidance scale can be saved as a teacher.")
    tensors = {name: value.half().contiguous().cpu() for name, value in student.delta().items()}
    (folder / COMPONENT).mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    rank = next(len(v) for name, v in tensors.items() if name.endswith("lora_A.weight"))
    config = {
        "base_sha256": base_sha256,
        "min_guidance_scale": guidance_scales[0],
        "max_guidance_scale": guidance_scales[1],
        "rank": rank,
    }
    _write_json(folder / CONFIG, config)
    index = {
        "_class_name": CLASS_NAME,
        "format": FORMAT,
        COMPONENT: ["core.teachers.toybox_guided", "ToyboxStudent"],
    }
    _write_json(folder / INDEX, index)
    (folder / "weights.sha256").write_text(_sha256(folder, base_sha256) + "\n", encoding="ascii")


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _sha256(folder: Path, base_sha256: str) -> str:
    """One SHA-256 over the teacher beneath and what is added to it."""
    digest = hashlib.sha256(base_sha256.encode())
    for name in (WEIGHTS, CONFIG):
        digest.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


class GuidedToyboxTeacher(ToyboxTeacher):
    """The toybox teacher under guidance, in one pass; a core.guidance.EmbedsGuidance.

    cond.guidance_scale says how strongly; without one it is 1, the conditional prediction. The
    scale strengthens text and camera together, so a camera is needed and a negative prompt has no
    place. A scale outside `guidance_scales` is refused where guidance is made, not here.
    """

    def __init__(self, *network: Any, guidance_scales: tuple[float, float], **how: Any) -> None:
        super().__init__(*network, **how)
        self.guidance_scales = guidance_scales

    @torch.no_grad()
    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        """Text features of prompts; what guidance contrasts them with is in the weights.

        Raises ValueError for a negative prompt.
        """
        if negative_prompt:
            raise ValueError("A guidance-distilled teacher cannot take a negative prompt.")
        text = super().encode(prompts).text
        return Conditioning(text=text)

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        """Predict from x_t [B, 3, 64, 64], t [B]; raises ValueError without text and camera."""
        if cond is None or cond.text is None or cond.camera is None:
            raise ValueError("A guidance-distilled teacher needs cond.text and cond.camera.")
        cond = cond.expand(len(x_t))
        assert cond.text is not None
        assert cond.camera is not None
        scale = cond.guidance_scale
        if scale is None:
            scale = torch.ones(len(x_t), device=x_t.device)
        x0 = self.network(x_t, t.to(x_t.dtype), cond.text, cond.camera, scale)
        return Prediction.from_x0(x0, x_t, t, self.schedule)


def load_guided(
    folder: Path,
    base: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> GuidedToyboxTeacher:
    """Read what `save_guided` wrote, on the teacher in `base`.

    Raises TeacherWeightsError where either is missing or damaged, or where it was trained on other
    weights than those in `base`.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(f"its format is {index['format']!r}")
        scales = float(config["min_guidance_scale"]), float(config["max_guidance_scale"])
        wanted, rank = str(config["base_sha256"]), int(config["rank"])
        sha256 = _sha256(folder, wanted)
        tensors = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
    except Exception as error:
        raise_shortage(error)
        raise _damaged(folder, error) from error
    found = weights_sha256(base)
    if found != wanted:
        raise TeacherWeightsError(
            f"the guided teacher in {folder} was distilled from other weights (hash {wanted[:12]}) "
            f"than those in {base} ({found[:12]}): run scripts/distill_toybox_guidance.py, or give "
            "--teacher toybox"
        )
    plain = ToyboxTeacher.load(base, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        student = ToyboxStudent(plain.network, rank=rank)
    try:
        student.load_delta(tensors)
    except ValueError as error:
        raise _damaged(folder, error) from error
    return GuidedToyboxTeacher(
        student.merged(),
        plain.tokenizer,
        plain.vocabulary,
        sha256,
        guidance_scales=scales,
        device=device,
        dtype=dtype,
    )


def _damaged(folder: Path, error: Exception) -> TeacherWeightsError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return TeacherWeightsError(
        f"the guided teacher in {folder} is missing or damaged ({reason}): install the package "
        "again, or distil it with scripts/distill_toybox_guidance.py"
    )
