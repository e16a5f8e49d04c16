"""What the teacher is asked about each view, and how its answer becomes a gradient.

The one place where the options' names become methods: `Supervision` is made once for a run, and
made of nothing but its options and the teacher. VSD's fake score alone has a state to save.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from core.denoiser import ClassifierFreeGuidance, Conditioning, Denoiser, Guidance, PerpNegGuidance
from core.distillation.score.cds import CDS
from core.distillation.score.csd import CSD
from core.distillation.score.hifa import HiFA
from core.distillation.score.ism import ISM
from core.distillation.score.nfsd import NFSD, NFSD_NEGATIVE_PROMPT
from core.distillation.score.reconstruction import Reconstruction
from core.distillation.score.sdi import SDI
from core.distillation.score.sds import (
    SDS,
    ScoreDistillation,
    Weighting,
    dreamfusion_weighting,
    eps_weighting,
    x0_weighting,
)
from core.distillation.score.sjc import SJC
from core.distillation.score.vsd import VSD
from core.guidance import EmbeddedGuidance, EmbedsGuidance, GuidanceRescale, Unconditional
from core.teachers.teacher import (
    LatentTeacher,
    TakesLora,
    encode_for,
    takes_camera,
    views_per_object,
)
from core.timesteps import Pace, TimestepPolicy, TimestepWindow, WeightedNonIncreasing
from core.transfer import to_device

from .embedded_guidance import embed
from .errors import ConfigError
from .fake_score import FakeScore
from .optimize_config import OptimizeConfig
from .seeds import step_seed
from .teachers import readable
from .view_prompts import ViewPrompts, view_texts
from .views import Views


class Encoder(Denoiser, Protocol):
    """What is needed of a teacher here."""

    def encode(self, prompts: list[str] | str, negative_prompt: str = "") -> Conditioning: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Supervision:
    """The teacher's judgement of views; made by `supervise`.

    Attributes:
        cond: The prompt without a view, one sample.
        view_prompts: The prompt for each view, None where they are off.
        negative: What NFSD keeps away from, None for the other methods.
        fake: What VSD compares the teacher with, None for the other methods; the caller trains it.
        seed: The run's, for CDS's one noise.
    """

    options: OptimizeConfig
    teacher: Encoder
    cond: Conditioning
    view_prompts: ViewPrompts | None
    negative: Conditioning | None
    fake: FakeScore | None = None
    seed: int = 0

    @property
    def views_per_object(self) -> int:
        """How many consecutive views the teacher judges together; 1 where it is told no camera."""
        return views_per_object(self.teacher) if self.options.camera_conditioning else 1

    @property
    def warning(self) -> str | None:
        """One line on how the teacher learns from where it looks, None where nothing is amiss."""
        if self.view_prompts is not None and self.view_prompts.are_one:
            return "the teacher reads all view prompts alike: --view-prompts changes nothing here"
        seen = self.options.camera_conditioning and takes_camera(self.teacher)
        if seen or self.view_prompts is not None or self.options.target != "mesh":
            return None
        return (
            "the teacher is not told where the camera stands and may make a front on every side: "
            "--view-prompts interpolated names the view in the prompt, --perp-neg keeps the others "
            "away"
        )

    def judged(self, x: Tensor) -> Tensor:
        """What `gradient` takes of images x [V, 3, H, W] in [-1, 1]: their latents, or themselves.

        Differentiable.
        """
        return x if self._autoencoder is not None else encode_for(self.teacher, x)

    def gradient(self, x: Tensor, t: Tensor, views: Views, generator: torch.Generator) -> Tensor:
        """The direction for what is `judged` of the views (or latents) at the times t [V]."""
        cond = self.condition(views)
        gradient = self.distillation(views).gradient(x, t, cond, generator=generator)
        if self._autoencoder is not None:
            # Every other gradient by pixels or latents is of a sum that is averaged over as many
            # values as the teacher denoises; so that this one is too, though there are more pixels.
            gradient = gradient * (x[0].numel() / math.prod(self._autoencoder.latent_shape))
        return gradient

    def condition(self, views: Views) -> Conditioning:
        """What the teacher is told about these views: the prompt, and where the camera stands."""
        cond = self.cond if self.view_prompts is None else self.view_prompts.at(views)
        return self._seen(cond, views)

    def guidance(self, scale: float, views: Views) -> Guidance:
        """The guided teacher for these views, with Perp-Neg and rescale where they are asked."""
        guidance = self._contrast(scale, views)
        # The reconstruction rescales by itself.
        if self.options.guidance_rescale > 0 and self.options.method != "reconstruction":
            guidance = GuidanceRescale(
                guidance=guidance,
                rescale=self.options.guidance_rescale,
                views=self.views_per_object,
            )
        return guidance

    def denoiser(self, views: Views) -> Denoiser:
        """The guided teacher where its one answer will do: in one pass if it embeds guidance."""
        if isinstance(self.teacher, EmbedsGuidance):
            return EmbeddedGuidance(self.teacher, self.options.guidance_scale)
        return self.guidance(self.options.guidance_scale, views)

    def distillation(self, views: Views) -> ScoreDistillation:
        """The method that the options name."""
        options, scale = self.options, self.options.guidance_scale
        weighting = loss_weighting(options)
        match options.method:
            case "sds":
                return SDS(self.denoiser(views), weighting)
            case "sjc":
                return SJC(self.denoiser(views), options.perturbations, weighting)
            case "csd":
                return CSD(self.guidance(scale, views), weighting)
            case "ism":
                return ISM(
                    denoiser=self.guidance(scale, views),
                    inverter=Unconditional(self.teacher),
                    interval=options.timestep_interval,
                    inversion_steps=options.ode_steps,
                    weighting=weighting,
                )
            case "sdi":
                # The authors' opposite of s: their plain guidance begins at the prompt, so that
                # their s is this one's less 1, and their Perp-Neg at nothing, as here.
                opposite = -scale if options.perp_neg else 2 - scale
                return SDI(
                    denoiser=self.guidance(scale, views),
                    inverter=self._contrast(opposite, views),
                    inversion_steps=options.ode_steps,
                    eta=options.inversion_eta,
                    weighting=weighting,
                )
            case "nfsd":
                assert self.negative is not None
                negative = self.negative
                # It is contrasted with nothing at all, and must not differ from it in the camera:
                # what it flees would then be the view.
                if not self._camera_dropped:
                    negative = self._seen(negative, views)
                return NFSD(
                    guidance=self.guidance(scale, views),
                    denoiser=self.teacher,
                    negative=negative,
                    weighting=weighting,
                )
            case "reconstruction":
                together = self.views_per_object
                return Reconstruction(
                    guidance=self.guidance(scale, views),
                    rescale=options.guidance_rescale,
                    # To a teacher of single views, those of a step are the one object's.
                    views=together if together > 1 else len(views.azimuth_deg),
                )
            case "hifa":
                images = self._autoencoder
                of_latents = isinstance(self.teacher, LatentTeacher) and images is None
                return HiFA(
                    denoiser=self.denoiser(views),
                    image_weight=0.0 if of_latents else options.image_weight,
                    steps=options.ode_steps,
                    encode=None if images is None else images.encode_image,
                    decode=None if images is None else images.decode_latents,
                    weighting=weighting,
                )
            case "cds":
                return CDS(
                    denoiser=self.denoiser(views),
                    interval=options.timestep_interval,
                    noise_seed=step_seed(self.seed, _FIXED_NOISE),
                    weighting=weighting,
                )
            case "vsd":
                assert self.fake is not None
                return VSD(self.guidance(scale, views), self.fake.denoiser, weighting)

    def _contrast(self, scale: float, views: Views) -> Guidance:
        """The prompt against nothing, with Perp-Neg where it is asked."""
        if not self.options.perp_neg or self.view_prompts is None:
            return ClassifierFreeGuidance(self.teacher, scale)
        negatives, weights = self.view_prompts.negatives(views)
        negatives = [self._seen(negative, views) for negative in negatives]
        return PerpNegGuidance(self.teacher, scale, negatives, weights)

    @property
    def _autoencoder(self) -> LatentTeacher | None:
        """The teacher where HiFA compares both images and latents, None elsewhere."""
        options, teacher = self.options, self.teacher
        if options.method != "hifa" or options.image_weight == 0 or options.latent:
            return None
        return teacher if isinstance(teacher, LatentTeacher) else None

    @property
    def _camera_dropped(self) -> bool:
        """Whether what guidance contrasts with has no camera, so that the camera is strengthened.

        Where the teacher does not look at it there is nothing to strengthen, and two halves that
        have the same fields are one call of the teacher instead of two.
        """
        return self.options.camera_guidance and takes_camera(self.teacher)

    def _seen(self, cond: Conditioning, views: Views) -> Conditioning:
        """`cond` with the views' cameras, unless the teacher is not to be told."""
        if not self.options.camera_conditioning:
            return cond
        device = None if cond.text is None else cond.text.device
        camera = views.camera if device is None else to_device(views.camera, device)
        seen = cond.with_camera(camera, drop_in_uncond=self._camera_dropped)
        uncond = seen.uncond
        # One call for both halves, where calls are what costs. On the CPU they stay two: a batch of
        # another size gives other last bits, and nothing is won.
        asks_once = camera.device.type in ONE_CALL_ON
        joins = asks_once and getattr(self.teacher, "nan_is_no_camera", False)
        if uncond is None or uncond.camera is not None or not joins:
            return seen
        return replace(seen, uncond=replace(uncond, camera=torch.full_like(camera, torch.nan)))


_FAKE_STEP = -(10**6)
"""Where in the steps' seeds the fake score's first weights are drawn: before all particles."""

_FIXED_NOISE = _FAKE_STEP - 1
"""And the noise that CDS keeps."""

ONE_CALL_ON = frozenset({"cuda"})
"""Types of devices on which a teacher that can tell a dropped camera in a row is asked once for
both halves of guidance."""


def supervise(
    options: OptimizeConfig,
    teacher: Encoder,
    prompt: str,
    negative_prompt: str,
    *,
    seed: int = 0,
) -> Supervision:
    """Encode all that a run will ask the teacher; `seed` is for what learns beside it.

    Raises ConfigError where the options ask of the teacher what it cannot do, TeacherError where
    its text encoders cannot be read.
    """
    check_views(options, views_per_object(teacher))

    def encode(prompts: list[str] | str, negative_prompt: str = "") -> Conditioning:
        with readable():
            cond = teacher.encode(prompts, negative_prompt)
        return embed(cond, options.embedded_guidance)

    negative = None
    if options.method == "nfsd":
        # Here the negative prompt is not what guidance contrasts with.
        negative = encode(negative_prompt or NFSD_NEGATIVE_PROMPT)
        negative = replace(negative, uncond=None)
        negative_prompt = ""
    view_prompts = None
    if options.view_prompts != "none":
        view_prompts = ViewPrompts(
            texts=encode(view_texts(prompt), negative_prompt),
            interpolated=options.view_prompts == "interpolated",
        )
    return Supervision(
        options=options,
        teacher=teacher,
        cond=encode(prompt, negative_prompt),
        view_prompts=view_prompts,
        negative=negative,
        fake=_fake_score(options, teacher, seed) if options.method == "vsd" else None,
        seed=seed,
    )


def check_views(options: OptimizeConfig, together: int, flag: str = "--views-per-step") -> None:
    """Raise ConfigError where a teacher that judges `together` views at once gets other numbers.

    `flag` is where the number of views in a step comes from.
    """
    if together == 1 or not options.camera_conditioning:
        return
    if options.target == "image":
        raise ConfigError(
            f"--target is image: this teacher judges {together} views of an object together; give "
            "--no-camera-conditioning, which shows it each picture by itself"
        )
    if options.views_per_step % together:
        raise ConfigError(
            f"{flag} is {options.views_per_step}: this teacher judges {together} views "
            f"of an object together; give {together} or a multiple of it"
        )
    refine = options.refine
    second = refine.refine_steps > 0 and not refine.refine_teacher
    if second and refine.refine_views_per_step % together:
        raise ConfigError(
            f"--refine-views-per-step is {refine.refine_views_per_step}: this teacher judges "
            f"{together} views of an object together; give {together} or a multiple of it, or "
            "another --refine-teacher"
        )


def check_learns(options: OptimizeConfig, teacher: object) -> None:
    """Raise ConfigError where the method wants a learning twin and the teacher can have none."""
    if options.method == "vsd" and not isinstance(teacher, TakesLora):
        raise ConfigError("--method is vsd, which this teacher has no LoRA for: give sds or csd")


def _fake_score(options: OptimizeConfig, teacher: Encoder, seed: int) -> FakeScore:
    check_learns(options, teacher)
    assert isinstance(teacher, TakesLora)
    generator = torch.Generator().manual_seed(step_seed(seed, _FAKE_STEP))
    denoiser = teacher.adapt(options.lora_rank, generator)
    return FakeScore(denoiser, options.lora_learning_rate)


def loss_weighting(options: OptimizeConfig) -> Weighting:
    """The w(t) that the options name; all but "reconstruction" take one."""
    match options.loss_weighting:
        case "x0":
            return x0_weighting
        case "eps":
            return eps_weighting
        case "sigma2":
            return dreamfusion_weighting


def timestep_policy(options: OptimizeConfig) -> TimestepPolicy:
    """The policy that the options name, between their times."""
    low, high, end = options.timestep_min, options.timestep_max, options.timestep_end
    match options.timestep_policy:
        case "linear":
            return TimestepWindow(low=low, high=high, end=end)
        case "sqrt":
            return TimestepWindow(low=low, high=high, pace=Pace.SQRT, end=end)
        case "jump":
            return TimestepWindow(low=low, high=high, pace=Pace.JUMP, end=end)
        case "uniform":
            return TimestepWindow(
                low=(min(low), min(low)), high=(max(high), max(high)), pace=Pace.CONSTANT
            )
        case "non-increasing":
            return WeightedNonIncreasing(t_min=min(low), t_max=max(high))
