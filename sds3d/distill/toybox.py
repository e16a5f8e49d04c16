"""The proving ground of the embedded teacher: 64x64 pictures under a prompt and a camera.

The data are pictures that the teacher itself makes on its way from noise to a picture, blurred at
first and too vivid at the end, as the renders are that it will be asked about. So nothing of the
world is needed but the words in the teacher's folder. scripts/distill_toybox_guidance.py adds
exact renders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core.denoiser import ClassifierFreeGuidance, Conditioning, Denoiser
from core.distillation.field.guidance import (
    GuidanceDistillation,
    GuidedProgressive,
    GuidedTeacher,
)
from core.distillation.field.progressive import ProgressiveDistillation
from core.distillation.method import Batch, Distillation, Ground
from core.distillation.students import sample_by_solver
from core.prediction import Parametrisation
from core.schedule import NoiseSchedule, diffuse, noise_like
from core.solvers.ddim import DDIM, ddim_step
from core.teachers.toybox_guided import ToyboxStudent

from ..errors import BadInput
from ..optimize_config import OptimizeConfig

if TYPE_CHECKING:
    from core.teachers.toybox import ToyboxTeacher
    from core.teachers.toybox_network import ToyboxNetwork

SCALES = (1.0, 7.5)
"""The guidance that students are distilled for: none at all, and what is customary for images; the
default of a run, 4, lies in the middle. Beyond, the teacher's pictures saturate."""

METHODS: tuple[type[Distillation], ...] = (
    GuidanceDistillation,
    GuidedProgressive,
    ProgressiveDistillation,
)
"""Those whose student is the teacher's own kind of network, so that it can begin as the teacher."""

T_MIN = 0.04
VIEWS_OF_PROMPT = 4
STEPS = 8
TEACHER_STEPS = 24
START = 0.98
"""The time at which a picture begins: a trace of the background is left to see."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """What the students are shown.

    Attributes:
        rgba: [N, 64, 64, 4] uint8, colours multiplied by the opacity.
        text: [N, 1, D], from the teacher's encoder.
        camera: [N, 2], azimuth and elevation in degrees.
        empty: [1, 1, D], the text of no prompt.
    """

    rgba: Tensor
    text: Tensor
    camera: Tensor
    empty: Tensor

    def __len__(self) -> int:
        return len(self.rgba)

    def __add__(self, other: Pictures) -> Pictures:
        return Pictures(
            rgba=torch.cat([self.rgba, other.rgba]),
            text=torch.cat([self.text, other.text]),
            camera=torch.cat([self.camera, other.camera]),
            empty=self.empty,
        )

    def draw(self, n: int, generator: torch.Generator) -> Batch:
        """n pictures [n, 3, 64, 64] in [-1, 1], on grounds of any colour where they are clear.

        The conditioning is what a run asks: text and camera, against neither.
        """
        index = torch.randint(len(self), (n,), generator=generator)
        rgba = self.rgba[index].permute(0, 3, 1, 2).float() / 255
        clear = 1 - rgba[:, 3:]
        images = rgba[:, :3] + clear * backgrounds(n, generator)[:, :, None, None]
        uncond = Conditioning(text=self.empty.expand(n, -1, -1))
        cond = Conditioning(text=self.text[index], camera=self.camera[index], uncond=uncond)
        return Batch(x0=2 * images - 1, cond=cond)


def backgrounds(n: int, generator: torch.Generator) -> Tensor:
    """[n, 3] in [0, 1]: any colour for one half, a grey for the other."""
    colors = torch.rand(n, 3, generator=generator)
    grey = torch.rand(n, 1, generator=generator) < 0.5
    return torch.where(grey, colors[:, :1], colors)


def random_prompt(vocabulary: dict[str, Any], generator: torch.Generator) -> str:
    """A thing in a colour, in a third of the cases with a part or on a support, by the words that
    the teacher's folder lists."""

    def pick(options: Sequence[str]) -> str:
        return options[int(torch.randint(len(options), (1,), generator=generator))]

    def color() -> str:
        colors = vocabulary["colors"]
        name = pick(sorted(colors))
        return pick(colors[name]) if isinstance(colors, dict) else name

    kind = pick(sorted(vocabulary["kinds"]))
    prompt = f"a {color()} {pick(vocabulary['kinds'][kind])}"
    parts = vocabulary.get("parts", {}).get(kind, [])
    supports = vocabulary.get("supports", [])
    form = int(torch.randint(6, (1,), generator=generator))
    if form == 0 and parts:
        prompt += f" with {color()} {pick(parts)}"
    elif form == 1 and supports:
        prompt += f" on a {color()} {pick(supports)}"
    return prompt


@torch.no_grad()
def imagined(teacher: ToyboxTeacher, count: int, seed: int) -> Pictures:
    """`count` pictures that the teacher makes under a run's default guidance, from all sides.

    Each starts from noise on an even ground, and its prediction at every one of a few steps counts.
    """
    generator = torch.Generator().manual_seed(seed)
    guided = ClassifierFreeGuidance(teacher, OptimizeConfig().guidance_scale)
    times = torch.linspace(START, 0, STEPS + 1)
    low, high = OptimizeConfig().elevation_range_deg
    images, texts, cameras = [], [], []
    batch = min(32, -(-count // (VIEWS_OF_PROMPT * STEPS)))
    while sum(map(len, images)) < count:
        prompts = [random_prompt(teacher.vocabulary, generator) for _ in range(batch)]
        prompts = [prompt for prompt in prompts for _ in range(VIEWS_OF_PROMPT)]
        n = len(prompts)
        spread = torch.tensor([360.0, high - low])
        camera = torch.rand(n, 2, generator=generator) * spread + torch.tensor([0.0, low])
        cond = teacher.encode(prompts).with_camera(camera, drop_in_uncond=True)
        ground = 2 * backgrounds(n, generator)[:, :, None, None].expand(-1, 3, 64, 64) - 1
        x = diffuse(teacher.schedule, ground, noise_like(ground, generator), times[0].expand(n))
        for t, s in pairwise(times):
            prediction = guided(x, t.expand(n), cond)
            x = ddim_step(prediction, s.expand(n))
            pixels = (prediction.x0.clamp(-1, 1) + 1) * 127.5
            opaque = torch.full_like(pixels[:, :1], 255)
            pixels = torch.cat([pixels, opaque], dim=1).round().to(torch.uint8)
            images.append(pixels.permute(0, 2, 3, 1))
            assert cond.text is not None
            texts.append(cond.text)
            cameras.append(camera)
    return Pictures(
        rgba=torch.cat(images)[:count],
        text=torch.cat(texts)[:count],
        camera=torch.cat(cameras)[:count],
        empty=_empty_text(teacher),
    )


def asked(teacher: ToyboxTeacher, count: int, seed: int) -> Pictures:
    """`count` random prompts, each from a side of its own: what pictures are drawn of. Their own
    are clear."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [random_prompt(teacher.vocabulary, generator) for _ in range(count)]
    low, high = OptimizeConfig().elevation_range_deg
    text = teacher.encode(prompts).text
    assert text is not None
    return Pictures(
        rgba=torch.zeros(count, teacher.image_size, teacher.image_size, 4, dtype=torch.uint8),
        text=text,
        camera=torch.rand(count, 2, generator=generator) * torch.tensor([360.0, high - low])
        + torch.tensor([0.0, low]),
        empty=_empty_text(teacher),
    )


def _empty_text(teacher: ToyboxTeacher) -> Tensor:
    text = teacher.encode("").text
    assert text is not None
    return text


def toybox_ground(teacher: ToyboxTeacher, network: ToyboxNetwork, pictures: Pictures) -> Ground:
    """The ground of the embedded teacher.

    Args:
        teacher: Asked for targets, in whatever precision it is fast in.
        network: The same in full precision; students begin as copies of it.
        pictures: The data.
    """

    def make_network(
        *, times: int = 1, reads_guidance_scale: bool = False, in_dimension: int | None = None
    ) -> nn.Module:
        if times != 1 or in_dimension is not None:
            raise ValueError("The toybox ground's networks are denoisers of pictures alone.")
        return ToyboxStudent(network, reads_guidance_scale=reads_guidance_scale)

    return Ground(
        teacher=teacher,
        shape=(3, teacher.image_size, teacher.image_size),
        data=pictures.draw,
        make_network=make_network,
        data_std=float(pictures.rgba[:256].float().div(127.5).std()),
        t_min=T_MIN,
        parametrisation=Parametrisation.X0,
    )


def inverse_sigma(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """1 / sigma [B], half way from the error of x0, which is what score distillation sees, to that
    of the velocity, which the teacher was trained on. Needs sigma > 0."""
    return 1 / schedule.sigma(t)


def require_fitting(name: str, nfe: int) -> None:
    """Raise BadInput where this ground has no students of that method in `nfe` steps."""
    names = [method.card.name for method in METHODS]
    if name not in names:
        raise BadInput(
            f"{name} does not fit the ground toybox: give {', '.join(names[:-1])} or {names[-1]}, "
            "or --teacher mixture or --teacher digits"
        )
    card = METHODS[names.index(name)].card
    if nfe not in card.nfe:
        raise BadInput(f"{name} is meant for --nfe {', '.join(map(str, card.nfe))}, not for {nfe}")


def make_toybox_method(
    name: str, ground: Ground, *, steps: int, nfe: int, batch: int, learning_rate: float, seed: int
) -> Distillation:
    """A method of METHODS ready to train. Raises BadInput for any other, or what does not fit."""
    require_fitting(name, nfe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if name == "guidance":
                return GuidanceDistillation(
                    ground,
                    min_scale=SCALES[0],
                    max_scale=SCALES[1],
                    weighting=inverse_sigma,
                    steps=steps,
                    batch=batch,
                    learning_rate=learning_rate,
                )
            if name == "guided-progressive":
                return GuidedProgressive(
                    ground,
                    min_scale=SCALES[0],
                    max_scale=SCALES[1],
                    weighting=inverse_sigma,
                    nfe=nfe,
                    steps=steps,
                    batch=batch,
                    learning_rate=learning_rate,
                )
            return ProgressiveDistillation(
                ground, nfe=nfe, steps=steps, batch=batch, learning_rate=learning_rate
            )
        except ValueError as error:
            raise BadInput(f"{name} on toybox: {error}") from error


@torch.no_grad()
def guidance_error(
    student: Denoiser, ground: Ground, scales: Sequence[float], n: int, seed: int
) -> dict[str, float]:
    """How much of guidance a one-pass student misses, at each scale above 1.

    rms(student - guided) / rms(guided - conditional) of x0, over n noised pictures at uniform
    times: 0 is the two passes themselves, 1 a student that ignores the scale.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = ground.data(n, generator)
    assert batch.cond is not None
    cond = batch.cond
    t = ground.times(n, generator)
    x_t = diffuse(ground.schedule, batch.x0, noise_like(batch.x0, generator), t)
    teacher = GuidedTeacher(ground.teacher)

    def at(denoiser: Denoiser, scale: float) -> Tensor:
        return denoiser(x_t, t, replace(cond, guidance_scale=torch.full((n,), scale))).x0

    conditional = at(teacher, 1.0)
    found = {}
    for scale in scales:
        guided = at(teacher, scale)
        missed = (at(student, scale) - guided).square().mean().sqrt()
        found[f"missed_at_{scale:g}"] = float(
            missed / (guided - conditional).square().mean().sqrt()
        )
    return found


@torch.no_grad()
def student_and_teacher(method: Distillation, nfe: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n pictures [n, 3, 64, 64] of the student in `nfe` steps, and of the method's teacher in many,
    from the same noise under the same prompts, cameras and guidance (a run's default)."""
    generator = torch.Generator().manual_seed(seed)
    cond = method.ground.data(n, generator).cond
    assert cond is not None
    if cond.guidance_scale is not None:
        cond = replace(cond, guidance_scale=torch.full((n,), OptimizeConfig().guidance_scale))
    noise = method.noise(n, generator)
    made = method.sample(noise, nfe, cond, generator)[-1]
    first = method.guidance if isinstance(method, GuidedProgressive) else method
    grid = method.ground.grid(TEACHER_STEPS)
    return made, sample_by_solver(first.ground.teacher, DDIM(), noise, grid, cond)[-1]
