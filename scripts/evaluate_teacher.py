"""Figures of a teacher's own pictures: are kind, colour and azimuth the ones asked for?

    python scripts/evaluate_teacher.py --teacher assets/toybox --json

Every kind is asked for equally often, half of the time in colours that the teacher never saw it
in. Each sample is compared with exact renders of the world, 16 variations from 24 sides of every
kind in every colour, on the sample's own background: the nearest kind and colour must be those of
the prompt, whatever the side; for asymmetric kinds the nearest side of the right thing must lie
within 30 degrees of the one asked for (chance: 1/6). The same of views alone: it must lie in
the region that is asked for, front, side or back (chance: 1/4, 1/2, 1/4); a teacher that takes no
camera is asked by that word in the prompt. Exact renders of other variations in the place of
samples give the ceiling.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
import tyro

from core.guidance import EmbedsGuidance, guided
from core.solvers.ddim import DDIM
from core.solvers.sampling import sample
from core.teachers.teacher import takes_camera
from core.teachers.toybox import ToyboxTeacher
from sds3d.config import DeviceName
from sds3d.device import resolve_device
from sds3d.embedded_guidance import check_guidance
from sds3d.errors import Sds3dError
from sds3d.evaluate.layers import (
    ALPHA_LAYER,
    AZIMUTHS_DEG,
    TEACHER_FRAME,
    Shape,
    color_weights,
    exact_views,
    pool,
)
from sds3d.evaluate.matching import (
    ASYMMETRIC_FROM,
    BETWEEN_DEG,
    TOLERANCE_DEG,
    exact_azimuth_share,
    view_distances,
)
from sds3d.evaluate.raycast import ELEVATION_DEG, SIDE
from sds3d.evaluate.references import References, cache_folder
from sds3d.preview import PreviewConfig
from sds3d.progress import eta_text
from sds3d.require import require_number
from sds3d.teachers import load_teacher
from sds3d.toybox.captions import plain_caption, view_name
from sds3d.toybox.colors import COLOR_NAMES
from sds3d.toybox.kinds import KIND_NAMES
from sds3d.toybox.scenes import SceneSpec, is_held_out

_CEILING_VARIATION = 3000  # and the next: none of the references
_STEP_DEG = 360.0 / len(AZIMUTHS_DEG)
_ALL_COLORS: list[tuple[str, str | None]] = [(color, None) for color in COLOR_NAMES]


@dataclass(frozen=True, kw_only=True)
class TeacherEvaluationConfig:
    """Compare samples of a teacher with exact renders of the toybox world."""

    teacher: str = "toybox"
    """toybox, toybox-guided, toybox-words, or the folder of one."""
    per_kind: int = 12
    """Samples of each kind, half of them of held-out pairs."""
    guidance_scales: tuple[float, ...] = (1.0, PreviewConfig.guidance_scale)
    """Guidance of each round of samples."""
    sample_steps: int = 20
    """Steps from noise to picture."""
    batch: int = 32
    """Pictures sampled at once."""
    seed: int = 0
    """Seed of prompts, cameras and noise."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    json: bool = False
    """Print JSON only."""

    def __post_init__(self) -> None:
        require_number("--per-kind", self.per_kind, 2, 10_000)
        require_number("--sample-steps", self.sample_steps, 1, 1000)
        require_number("--batch", self.batch, 1, 4096)
        require_number("--seed", self.seed, 0, 2**31 - 1)
        for scale in self.guidance_scales:
            require_number("--guidance-scales", scale, 0, 1000)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture to be drawn."""

    spec: SceneSpec
    azimuth_deg: float
    held_out: bool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was right about it; of a kind without a front, azimuth and view are None.

    The view is front, side or back, and right where the best match lies there or borders on it.
    """

    kind: bool
    color: bool
    azimuth: bool | None
    view: bool | None


def draw_requests(per_kind: int, seed: int) -> list[Request]:
    """Every kind `per_kind` times, by turns with a training pair and with a held-out one."""
    rng = np.random.default_rng([seed, 86_028_121])
    requests = []
    for kind in KIND_NAMES:
        for i in range(per_kind):
            held_out = i % 2 == 1
            colors = [c for c in COLOR_NAMES if is_held_out(kind, c) == held_out]
            spec = SceneSpec(kind=kind, color=colors[int(rng.integers(len(colors)))])
            azimuth = float(BETWEEN_DEG[int(rng.integers(len(BETWEEN_DEG)))])
            requests.append(Request(spec=spec, azimuth_deg=azimuth, held_out=held_out))
    return requests


def background(image: np.ndarray) -> np.ndarray:
    """The plain colour [3] behind the thing in an image [SIDE, SIDE, 3]: its border's median."""
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    return np.median(border, axis=0)


def judge(image: np.ndarray, request: Request, references: References, asymmetric: bool) -> Answer:
    """Compare an image [SIDE, SIDE, 3] in [0, 1] with every kind in every colour.

    With the background b, a render is F + c M + b (1 - A); less b it is F + c M - b A, which the
    coverage layer's weight expresses.
    """
    ground = background(image)
    view = np.zeros((SIDE, SIDE, 4), np.float32)
    view[..., :3] = image - ground
    pixels = pool(view[None])
    weights = color_weights(_ALL_COLORS)
    weights[:, :3, ALPHA_LAYER] = -ground
    weights[:, 3] = 0.0  # a picture has no coverage of its own
    nearest = np.inf
    found = (request.spec.kind, request.spec.color)
    azimuth = view = None
    for kind in KIND_NAMES:
        distances = view_distances(
            references(Shape(kind=kind)), weights, pixels, all_azimuths=True
        )[..., 0]
        by_color = distances.min(axis=(1, 2))
        if by_color.min() < nearest:
            nearest = float(by_color.min())
            found = (kind, COLOR_NAMES[int(by_color.argmin())])
        if kind == request.spec.kind and asymmetric:
            own = distances[COLOR_NAMES.index(request.spec.color)]
            best = AZIMUTHS_DEG[int(own.min(axis=0).argmin())]
            away = abs((best - request.azimuth_deg + 180.0) % 360.0 - 180.0)
            azimuth = bool(away < TOLERANCE_DEG)
            around = (best - _STEP_DEG / 2, best, best + _STEP_DEG / 2)
            view = _view(request.azimuth_deg) in map(_view, around)
    return Answer(
        kind=found[0] == request.spec.kind,
        color=found[1] == request.spec.color,
        azimuth=azimuth,
        view=view,
    )


def _view(azimuth_deg: float) -> str:
    """front, side or back."""
    return view_name(azimuth_deg, ELEVATION_DEG)


def prompt_of(request: Request, *, in_words: bool) -> str:
    """The request's plain caption, with the view's name where that is how the teacher knows it."""
    caption = plain_caption(request.spec)
    return f"{caption}, {_view(request.azimuth_deg)} view" if in_words else caption


@torch.no_grad()
def draw(
    teacher: ToyboxTeacher, requests: list[Request], scale: float, config: TeacherEvaluationConfig
) -> Iterator[np.ndarray]:
    """The teacher's picture of each request, float [SIDE, SIDE, 3] in [0, 1]."""
    generator = torch.Generator().manual_seed(config.seed)
    times = torch.linspace(1, 0, config.sample_steps + 1)
    plain = scale == 1 and not isinstance(teacher, EmbedsGuidance)
    denoiser = teacher if plain else guided(teacher, scale)
    in_words = not takes_camera(teacher)
    for first in range(0, len(requests), config.batch):
        some = requests[first : first + config.batch]
        camera = torch.tensor([[one.azimuth_deg, ELEVATION_DEG] for one in some])
        cond = teacher.encode([prompt_of(one, in_words=in_words) for one in some])
        cond = cond.with_camera(camera.to(teacher.device))
        noise = torch.randn(len(some), 3, SIDE, SIDE, generator=generator).to(teacher.device)
        x = sample(denoiser, DDIM(), times, noise, cond).x
        images = ((x.float().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy()
        yield from images


def exact_pictures(requests: list[Request], seed: int) -> Iterator[np.ndarray]:
    """The world's own picture of each request, in a variation that is none of the references."""
    rng = np.random.default_rng([seed, 49_979_687])
    for i, one in enumerate(requests):
        azimuth = np.array([one.azimuth_deg])
        rgba = exact_views(one.spec, _CEILING_VARIATION + i, azimuth, frame=TEACHER_FRAME)[0]
        yield rgba[..., :3] + (1.0 - rgba[..., 3:]) * rng.uniform(size=3)


def _mean(values: list[bool | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return round(fmean(known), 4) if known else None


def _figures(answers: list[Answer]) -> dict[str, Any]:
    return {
        "samples": len(answers),
        "kind_accuracy": _mean([a.kind for a in answers]),
        "color_accuracy": _mean([a.color for a in answers]),
        "both_accuracy": _mean([a.kind and a.color for a in answers]),
        "azimuth_accuracy": _mean([a.azimuth for a in answers]),
        "view_accuracy": _mean([a.view for a in answers]),
    }


def figures(requests: list[Request], answers: list[Answer]) -> dict[str, Any]:
    """Of all samples, of training and held-out pairs, and of each kind."""
    pairs = list(zip(requests, answers, strict=True))
    return {
        "all": _figures(answers),
        "training_pairs": _figures([a for r, a in pairs if not r.held_out]),
        "held_out_pairs": _figures([a for r, a in pairs if r.held_out]),
        "kinds": {k: _figures([a for r, a in pairs if r.spec.kind == k]) for k in KIND_NAMES},
    }


def evaluate_teacher(
    config: TeacherEvaluationConfig, on_progress: Callable[[str], None]
) -> dict[str, Any]:
    """All figures; raises the errors of `sds3d.errors`."""
    teacher = load_teacher(config.teacher, resolve_device(config.device))
    if not isinstance(teacher, ToyboxTeacher):
        raise SystemExit("--teacher: only a teacher of the toybox world can be compared with it")
    for scale in config.guidance_scales:
        check_guidance(teacher, config.teacher, scale)
    references = References(cache_folder() / "references", frame=TEACHER_FRAME)
    asymmetric: dict[str, bool] = {}
    for i, kind in enumerate(KIND_NAMES):
        on_progress(f"exact renders {i}/{len(KIND_NAMES)}")
        share = exact_azimuth_share(references, Shape(kind=kind))
        asymmetric[kind] = share >= ASYMMETRIC_FROM
    requests = draw_requests(config.per_kind, config.seed)
    found: dict[str, Any] = {}
    rounds: list[tuple[str, Iterator[np.ndarray]]] = [
        (f"guidance_{scale:g}", draw(teacher, requests, scale, config))
        for scale in config.guidance_scales
    ]
    rounds.append(("exact", exact_pictures(requests, config.seed)))
    for name, images in rounds:
        started, answers = time.monotonic(), []
        for request, image in zip(requests, images, strict=True):
            answers.append(judge(image, request, references, asymmetric[request.spec.kind]))
            if len(answers) % config.batch == 0:
                pace = (time.monotonic() - started) / len(answers)
                left = eta_text(pace * (len(requests) - len(answers)))
                on_progress(f"{name}: {len(answers)}/{len(requests)} pictures, ETA {left}")
        found[name] = figures(requests, answers)
    return {
        "weights_sha256": teacher.weights_sha256,
        "seed": config.seed,
        "sample_steps": config.sample_steps,
        "asymmetric_kinds": [kind for kind, asymmetry in asymmetric.items() if asymmetry],
        **found,
    }


def table(found: dict[str, Any]) -> str:
    """The figures as text, a row for each group and kind, percentages in each round's columns."""
    rounds = [name for name, value in found.items() if isinstance(value, dict)]
    names: list[Literal["kind", "color", "azimuth", "view"]] = ["kind", "color", "azimuth", "view"]
    lines = [f"{'':16}" + "".join(f"{name:^36}" for name in rounds)]
    lines.append(f"{'':16}" + "".join(f"{name:>9}" for _ in rounds for name in names))
    for group in ("all", "training_pairs", "held_out_pairs", *KIND_NAMES):
        cells = []
        for name in rounds:
            row = found[name].get(group) or found[name]["kinds"][group]
            values = [row[f"{figure}_accuracy"] for figure in names]
            cells += ["-" if value is None else f"{100 * value:.0f} %" for value in values]
        lines.append(f"{group:16}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def main() -> int:
    config = tyro.cli(TeacherEvaluationConfig, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        found = evaluate_teacher(config, lambda text: print(text, file=sys.stderr, flush=True))
    except Sds3dError as error:
        print(f"evaluate_teacher: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(found) if config.json else table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
