"""The options of the optimisation: what is optimised, by which method, and how.

Frozen, keyword-only, and checked when made. Importing this module does not import torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, get_args

from .require import require, require_number, require_range

ADDED_LATER = {"added_later": True}
"""Metadata of a field that documents of earlier versions lack: they mean its default."""

TargetName = Literal["mesh", "image"]
MethodName = Literal[
    "sds", "sjc", "csd", "ism", "sdi", "nfsd", "reconstruction", "hifa", "cds", "vsd"
]
TimestepPolicyName = Literal["linear", "sqrt", "jump", "uniform", "non-increasing"]
LossWeightingName = Literal["x0", "eps", "sigma2"]
ViewPromptsName = Literal["none", "discrete", "interpolated"]
EncodingName = Literal["auto", "cuda", "tinycudann", "numba", "torch"]
TableDtypeName = Literal["float32", "float16"]


@dataclass(frozen=True, kw_only=True)
class FieldOptions:
    """The radiance field: a multi-resolution hash grid and a small MLP."""

    n_levels: int = 8
    """Levels of the hash grid."""
    n_features: int = 2
    """Features stored in each entry."""
    log2_table_size: int = 15
    """Most entries of one level, as a power of two."""
    base_resolution: int = 8
    """Cells along an axis at the coarsest level."""
    finest_resolution: int = 128
    """Cells along an axis at the finest level."""
    hidden_dim: int = 32
    """Width of the MLP's hidden layer."""

    def __post_init__(self) -> None:
        require_number("--n-levels", self.n_levels, 1, 32)
        require(self.n_features in (1, 2, 4, 8), "--n-features", self.n_features, "give 1, 2, 4, 8")
        require_number("--log2-table-size", self.log2_table_size, 4, 24)
        require_number("--base-resolution", self.base_resolution, 2, 512)
        require_number("--finest-resolution", self.finest_resolution, self.base_resolution, 8192)
        require_number("--hidden-dim", self.hidden_dim, 4, 1024)

    @property
    def per_level_scale(self) -> float:
        """Growth of the resolution from one level to the next."""
        if self.n_levels == 1:
            return 1.0
        return (self.finest_resolution / self.base_resolution) ** (1 / (self.n_levels - 1))


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """An image in the place of the field (--target image)."""

    image_resolution: int = 0
    """Side of the optimised image in pixels, shown at the teacher's; 0 is the teacher's."""
    image_learning_rate: float = 0.02
    """Adam's rate for the image's values in [0, 1]."""
    azimuth_deg: float = 0.0
    """Azimuth of the image's camera in degrees, 0 in front."""
    elevation_deg: float = 15.0
    """Elevation of the image's camera in degrees."""

    def __post_init__(self) -> None:
        require(
            self.image_resolution == 0 or 4 <= self.image_resolution <= 2048,
            "--image-resolution",
            self.image_resolution,
            "give 4 to 2048 pixels, or 0 for the teacher's own",
        )
        require_number("--image-learning-rate", self.image_learning_rate, 0, 1)
        require_number("--azimuth-deg", self.azimuth_deg, -360, 360)
        require_number("--elevation-deg", self.elevation_deg, -90, 90)


_IMAGE_DEFAULTS = ImageOptions()


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """A second, finer stage on the mesh itself (--refine-steps)."""

    refine_steps: int = 0
    """Steps on the mesh, after those on the field; 0 leaves the second stage out."""
    refine_teacher: str = ""
    """The second stage's teacher; left out, it is the first stage's."""
    refine_resolution: int = 512
    """Side of the second stage's views in pixels."""
    refine_views_per_step: int = 1
    """Cameras in each step of the second stage."""
    refine_guidance_scale: float = 0.0
    """Classifier-free guidance of the second stage; 0 is the first stage's."""
    refine_perp_neg: bool = field(default=True, metadata=ADDED_LATER)
    """Whether the second stage avoids the other views' prompts too, where the first one does."""
    refine_timesteps: tuple[float, float] = (0.02, 0.5)
    """Smallest and largest diffusion time of the second stage."""
    refine_fovy_range_deg: tuple[float, float] = (30.0, 45.0)
    """Smallest and largest field of view of the second stage; 40 is that of the first."""
    tetrahedra_resolution: int = 64
    """Nodes along an axis of the grid of tetrahedra that holds the surface."""
    surface_learning_rate: float = 0.01
    """Adam's rate for the surface, in cells of that grid."""
    texture_learning_rate: float = 0.01
    """Adam's rate for the hash grid of the colours; a tenth of it for the MLP."""
    roughness_weight: float = 0.6
    """Weight of the penalty on angles between neighbouring faces."""

    def __post_init__(self) -> None:
        require_number("--refine-steps", self.refine_steps, 0, 1_000_000)
        require_number("--refine-resolution", self.refine_resolution, 8, 2048)
        require_number("--refine-views-per-step", self.refine_views_per_step, 1, 64)
        require_number("--refine-guidance-scale", self.refine_guidance_scale, 0, 1000)
        require_range("--refine-timesteps", self.refine_timesteps, 0, 1)
        require_range("--refine-fovy-range-deg", self.refine_fovy_range_deg, 5, 90)
        for flag, pair in (
            ("--refine-timesteps", self.refine_timesteps),
            ("--refine-fovy-range-deg", self.refine_fovy_range_deg),
        ):
            require(pair[0] <= pair[1], flag, pair, "give the smaller number first")
        require_number("--tetrahedra-resolution", self.tetrahedra_resolution, 8, 512)
        require_number("--surface-learning-rate", self.surface_learning_rate, 0, 1)
        require_number("--texture-learning-rate", self.texture_learning_rate, 0, 1)
        require_number("--roughness-weight", self.roughness_weight, 0)


_REFINE_DEFAULTS = RefineOptions()


@dataclass(frozen=True, kw_only=True)
class OptimizeConfig:
    """The score distillation. Progress runs from 0 at the first step to 1 after the last."""

    target: TargetName = field(default="mesh", metadata=ADDED_LATER)
    """What is made: a field that becomes a mesh, or an image to look at a method closely."""
    steps: int = 1000
    """Steps of the optimisation."""
    extra_steps: int = field(default=0, metadata=ADDED_LATER)
    """Steps after these, with rates, times and resolution as at the end of the planned ones."""
    guidance_scale: float = 4.0
    """Classifier-free guidance: uncond + s (cond - uncond)."""
    method: MethodName = field(default="sds", metadata=ADDED_LATER)
    """How the teacher's score becomes a gradient."""
    embedded_guidance: float = field(default=0.0, metadata=ADDED_LATER)
    """The scale that a teacher such as FLUX.1-dev takes as an input; 0 is its published one."""
    guidance_rescale: float = field(default=0.0, metadata=ADDED_LATER)
    """Share by which the guided image's contrast is brought back to the unguided one's."""
    perturbations: int = field(default=4, metadata=ADDED_LATER)
    """Noises averaged in each view (sjc)."""
    timestep_interval: float = field(default=0.05, metadata=ADDED_LATER)
    """Time between the two neighbours that are compared (ism, cds)."""
    inversion_eta: float = field(default=0.3, metadata=ADDED_LATER)
    """Noise that each step of the inversion adds, as a share of DDPM's (sdi)."""
    ode_steps: int = field(default=10, metadata=ADDED_LATER)
    """Steps toward the image's own noise (ism, sdi) or toward the clean image (hifa)."""
    image_weight: float = field(default=0.1, metadata=ADDED_LATER)
    """Weight of the distance in pixels beside that in latents; 0 decodes nothing (hifa)."""
    particles: int = field(default=1, metadata=ADDED_LATER)
    """Objects that are made together, each step moving the next in turn (vsd)."""
    lora_rank: int = field(default=4, metadata=ADDED_LATER)
    """Rank of what the teacher's learning twin may change (vsd)."""
    lora_learning_rate: float = field(default=1e-4, metadata=ADDED_LATER)
    """Adam's rate for the learning twin (vsd)."""
    latent: bool = field(default=False, metadata=ADDED_LATER)
    """Give the field the teacher's latents as colours, so that no step encodes an image."""
    rgb_refinement: float = field(default=0.0, metadata=ADDED_LATER)
    """Share of the steps, the last ones, that judge a field of latents by its pictures."""
    view_prompts: ViewPromptsName = field(default="none", metadata=ADDED_LATER)
    """Whether prompts say front, side, back or overhead view: the nearest, or a mixture."""
    perp_neg: bool = field(default=False, metadata=ADDED_LATER)
    """Avoid the other views' prompts, as far as that does not undo the view's own."""
    camera_conditioning: bool = field(default=True, metadata=ADDED_LATER)
    """Whether the teacher is told where the camera stands."""
    camera_guidance: bool = True
    """Whether guidance strengthens the camera too, and not the prompt alone."""
    views_per_step: int = 2
    """Cameras rendered in each step, stratified in azimuth."""
    resolutions: tuple[int, ...] = (32, 64)
    """Side of the rendered views in pixels, coarse to fine."""
    resolution_milestones: tuple[float, ...] = (0.4,)
    """Progress at which each next resolution begins."""
    elevation_range_deg: tuple[float, float] = (-10.0, 60.0)
    """Lowest and highest camera elevation in degrees."""
    timestep_max: tuple[float, float] = (0.98, 0.7)
    """Largest diffusion time at the start and at the end."""
    timestep_min: tuple[float, float] = (0.6, 0.2)
    """Smallest diffusion time at the start and at the end."""
    timestep_policy: TimestepPolicyName = field(default="linear", metadata=ADDED_LATER)
    """How times go from start to end: with progress, its root, at once at --timestep-end, not at
    all, or never upward."""
    timestep_end: float = field(default=1.0, metadata=ADDED_LATER)
    """Progress at which times are at their end (linear, sqrt, jump)."""
    loss_weighting: LossWeightingName = field(default="x0", metadata=ADDED_LATER)
    """What counts alike at all times: the image (x0), or the noise (eps); sigma2 is eps times the
    noise's variance."""
    encoding_learning_rate: float = 1e-1
    """Adam's rate for the hash grid."""
    mlp_learning_rate: float = 2e-2
    """Adam's rate for the MLP."""
    final_learning_rate: float = 0.1
    """Both rates fall to this share of themselves."""
    step_size: float = 0.04
    """Length of one interval along a ray, in world units (the box has sides of 2)."""
    entropy_weight: float = 0.02
    """Weight of the regulariser that makes opacities 0 or 1."""
    orientation_weight: float = 0.0
    """Weight of the penalty on normals that face away from the camera."""
    normal_smoothness_weight: float = 0.0
    """Weight of the penalty on normals that change from point to point."""
    occupancy_resolution: int = 32
    """Cells along an axis of the occupancy grid."""
    occupancy_interval: int = 8
    """Steps between updates of the occupancy grid."""
    encoding: EncodingName = field(default="auto", metadata=ADDED_LATER)
    """What computes the hash grid: our CUDA kernels, tinycudann, Numba on the CPU, or plain torch;
    auto takes the fastest that works here."""
    table_dtype: TableDtypeName = field(default="float32", metadata=ADDED_LATER)
    """What the hash grid's table is read as, trained in float32 either way. With float16 our CUDA
    kernels look up numbers of half the size, of a table that is rounded whole once a step; whether
    that saves time is not known, as it has not been run on a GPU yet."""
    cuda_graphs: bool = field(default=False, metadata=ADDED_LATER)
    """On CUDA, replay the teacher's network as one launch, for the memory of up to four of its
    calls, which doctor does not count. Not run on a GPU yet."""
    field: FieldOptions = field(default_factory=FieldOptions)
    image: ImageOptions = dataclasses.field(default=_IMAGE_DEFAULTS, metadata=ADDED_LATER)
    refine: RefineOptions = dataclasses.field(default=_REFINE_DEFAULTS, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        require_number("--steps", self.steps, 1, 1_000_000)
        require_number("--extra-steps", self.extra_steps, 0, 1_000_000)
        require_number("--guidance-scale", self.guidance_scale, 0, 1000)
        self._check_method()
        require_number("--views-per-step", self.views_per_step, 1, 64)
        require(
            len(self.resolutions) > 0 and all(8 <= side <= 1024 for side in self.resolutions),
            "--resolutions",
            self.resolutions,
            "give one or more sides of 8 to 1024 pixels",
        )
        require(
            len(self.resolution_milestones) == len(self.resolutions) - 1,
            "--resolution-milestones",
            self.resolution_milestones,
            f"give {len(self.resolutions) - 1} numbers, one less than --resolutions",
        )
        require(
            all(0 <= share <= 1 for share in self.resolution_milestones)
            and list(self.resolution_milestones) == sorted(self.resolution_milestones),
            "--resolution-milestones",
            self.resolution_milestones,
            "give rising numbers in [0, 1]",
        )
        require_range("--elevation-range-deg", self.elevation_range_deg, -89, 89)
        require(
            self.elevation_range_deg[0] <= self.elevation_range_deg[1],
            "--elevation-range-deg",
            self.elevation_range_deg,
            "give the lower elevation first",
        )
        require_range("--timestep-max", self.timestep_max, 0, 1)
        require_range("--timestep-min", self.timestep_min, 0, 1)
        require(
            all(
                low <= high for low, high in zip(self.timestep_min, self.timestep_max, strict=True)
            ),
            "--timestep-min",
            self.timestep_min,
            f"give times not above --timestep-max {self.timestep_max}",
        )
        require_number("--encoding-learning-rate", self.encoding_learning_rate, 0, 1)
        require_number("--mlp-learning-rate", self.mlp_learning_rate, 0, 1)
        require_number("--final-learning-rate", self.final_learning_rate, 0, 1)
        require_number("--step-size", self.step_size, 1e-3, 1)
        require_number("--entropy-weight", self.entropy_weight, 0)
        require_number("--orientation-weight", self.orientation_weight, 0)
        require_number("--normal-smoothness-weight", self.normal_smoothness_weight, 0)
        require_number("--occupancy-resolution", self.occupancy_resolution, 4, 512)
        require_number("--occupancy-interval", self.occupancy_interval, 1)

    def _check_method(self) -> None:
        for flag, value, allowed in (
            ("--target", self.target, TargetName),
            ("--method", self.method, MethodName),
            ("--view-prompts", self.view_prompts, ViewPromptsName),
            ("--timestep-policy", self.timestep_policy, TimestepPolicyName),
            ("--loss-weighting", self.loss_weighting, LossWeightingName),
            ("--encoding", self.encoding, EncodingName),
            ("--table-dtype", self.table_dtype, TableDtypeName),
        ):
            choices = get_args(allowed)
            require(value in choices, flag, value, f"give one of {', '.join(choices)}")
        require_number("--guidance-rescale", self.guidance_rescale, 0, 1)
        require_number("--embedded-guidance", self.embedded_guidance, 0, 100)
        require_number("--inversion-eta", self.inversion_eta, 0, 1)
        require_number("--timestep-end", self.timestep_end, 0, 1, open_low=True)
        require_number("--perturbations", self.perturbations, 1, 64)
        require_number("--timestep-interval", self.timestep_interval, 1e-3, 0.5)
        require_number("--ode-steps", self.ode_steps, 1, 100)
        require_number("--image-weight", self.image_weight, 0)
        require_number("--particles", self.particles, 1, 64)
        require_number("--lora-rank", self.lora_rank, 1, 1024)
        require_number("--lora-learning-rate", self.lora_learning_rate, 0, 1)
        require(
            self.particles == 1 or self.method == "vsd",
            "--particles",
            self.particles,
            "give --method vsd with it; other methods make one object, so run them once per --seed",
        )
        require(
            self.target == "mesh" or self.refine.refine_steps == 0,
            "--refine-steps",
            self.refine.refine_steps,
            "give it with --target mesh: an image has no mesh to refine",
        )
        require_number("--rgb-refinement", self.rgb_refinement, 0, 1)
        require(
            self.latent or self.rgb_refinement == 0,
            "--rgb-refinement",
            self.rgb_refinement,
            "give --latent with it; a field of RGB has nothing to refine into",
        )
        require(
            not self.latent or (self.target == "mesh" and self.refine.refine_steps == 0),
            "--latent",
            self.latent,
            "give --target mesh and no --refine-steps with it: only a field holds latents",
        )
        require(
            self.method != "reconstruction" or self.guidance_rescale > 0,
            "--guidance-rescale",
            self.guidance_rescale,
            "give a share above 0 (0.5 is MVDream's) with --method reconstruction; "
            "without one it is sds",
        )
        require(
            self.method != "reconstruction" or self.loss_weighting == "x0",
            "--loss-weighting",
            self.loss_weighting,
            "give x0 with --method reconstruction: it compares images",
        )
        require(
            self.method != "csd" or self.guidance_scale > 0,
            "--guidance-scale",
            self.guidance_scale,
            "give a number above 0 with --method csd, which is guidance alone",
        )
        require(
            not self.perp_neg or self.view_prompts != "none",
            "--perp-neg",
            self.perp_neg,
            "give --view-prompts interpolated (or discrete) with it: it is their views it avoids",
        )
        require(
            self.timestep_policy != "non-increasing"
            or min(self.timestep_min) < max(self.timestep_max),
            "--timestep-policy",
            self.timestep_policy,
            "give a --timestep-min below --timestep-max for times to sink through",
        )

    @property
    def total_steps(self) -> int:
        """The planned steps and those after them."""
        return self.steps + self.extra_steps

    @property
    def all_steps(self) -> int:
        """Those of the second stage among them."""
        return self.total_steps + self.refine.refine_steps
