"""How much one place gives to jobs: the queue, and what a single job may ask for.

They are checked where a job enters the store, whatever interface it came through, and the disk
once more before it is worked on.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sds3d.config import GenerateConfig
from sds3d.errors import output_error
from sds3d.jobs.errors import DiskLow, LimitExceeded, QueueFull
from sds3d.optimize_config import RefineOptions
from sds3d.require import require_number


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """The most that may be asked for."""

    max_queued: int = 100
    """Jobs that may wait."""
    max_steps: int = 20_000
    """Steps of one run, those of every continuation among them."""
    max_render_resolution: int = 256
    """Side of the views that are rendered in a step, in pixels."""
    max_refine_resolution: int = 512
    """Side of the second stage's views, in pixels."""
    max_views_per_step: int = 8
    """Views that are rendered in a step."""
    max_mesh_resolution: int = 384
    """Cells along an axis of the grid on which the surface is found."""
    max_faces: int = 500_000
    """Triangles of the mesh."""
    max_texture_size: int = 4096
    """Side of the texture in pixels."""
    max_field_values: int = 2**25
    """Numbers that the hash grids of a run's fields hold."""
    max_hidden_dim: int = 256
    """Width of the field's MLP."""
    max_occupancy_resolution: int = 128
    """Cells along an axis of the occupancy grid."""
    min_step_size: float = 0.01
    """Length of one interval along a ray: samples of a view grow with its inverse."""
    max_perturbations: int = 16
    """Noises averaged in each view."""
    max_ode_steps: int = 50
    """Steps of the teacher toward a noise or an image, within each step of the run."""
    max_lora_rank: int = 64
    """Rank of what the teacher's learning twin may change."""
    min_free_bytes: int = 512 * 2**20
    """Space that must be left on the disk for a job to begin."""
    teachers: tuple[str, ...] | None = None
    """Teachers that may be asked for; None: any that this machine has."""

    def __post_init__(self) -> None:
        for name in (
            *("max_queued", "max_steps", "max_views_per_step", "max_field_values"),
            *("max_perturbations", "max_ode_steps", "max_lora_rank"),
        ):
            require_number(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        require_number("--max-render-resolution", self.max_render_resolution, 8)
        require_number("--max-refine-resolution", self.max_refine_resolution, 8)
        require_number("--max-mesh-resolution", self.max_mesh_resolution, 16)
        require_number("--max-faces", self.max_faces, 100)
        require_number("--max-texture-size", self.max_texture_size, 64)
        require_number("--max-hidden-dim", self.max_hidden_dim, 4)
        require_number("--max-occupancy-resolution", self.max_occupancy_resolution, 4)
        require_number("--min-step-size", self.min_step_size, 0)
        require_number("--min-free-bytes", self.min_free_bytes, 0)


def check_config(config: GenerateConfig, limits: LimitsConfig) -> None:
    """Raise LimitExceeded, naming the option and its limit, where a job asks for too much."""
    options, mesh = config.optimize, config.mesh
    grid = options.field
    second_teacher = options.refine.refine_teacher or config.teacher
    asked = (
        ("--steps", options.all_steps, limits.max_steps),
        ("--resolutions", max(options.resolutions), limits.max_render_resolution),
        ("--views-per-step", options.views_per_step, limits.max_views_per_step),
        *_asked_of_second_stage(options.refine, limits),
        ("--mesh-resolution", mesh.mesh_resolution, limits.max_mesh_resolution),
        ("--max-faces", mesh.max_faces, limits.max_faces),
        ("--texture-size", mesh.texture_size, limits.max_texture_size),
        (
            "--n-levels x --n-features x 2^--log2-table-size x --particles",
            grid.n_levels * grid.n_features * 2**grid.log2_table_size * options.particles,
            limits.max_field_values,
        ),
        ("--hidden-dim", grid.hidden_dim, limits.max_hidden_dim),
        (
            "--occupancy-resolution",
            options.occupancy_resolution,
            limits.max_occupancy_resolution,
        ),
        ("--perturbations", options.perturbations, limits.max_perturbations),
        ("--ode-steps", options.ode_steps, limits.max_ode_steps),
        ("--lora-rank", options.lora_rank, limits.max_lora_rank),
    )
    for name, value, most in asked:
        if value > most:
            raise LimitExceeded(f"{name} is {value}: this place allows at most {most}")
    if options.step_size < limits.min_step_size:
        raise LimitExceeded(
            f"--step-size is {options.step_size}: this place allows at least {limits.min_step_size}"
        )
    if options.target != "mesh":
        raise LimitExceeded(
            f"--target is {options.target}: jobs make meshes, give sds3d generate for anything else"
        )
    for flag, name in (("--teacher", config.teacher), ("--refine-teacher", second_teacher)):
        if limits.teachers is not None and name not in limits.teachers:
            raise LimitExceeded(
                f"{flag} is {name[:80]!r}: this place allows {', '.join(limits.teachers)}"
            )


def _asked_of_second_stage(
    refine: RefineOptions, limits: LimitsConfig
) -> list[tuple[str, int, int]]:
    if refine.refine_steps == 0:
        return []
    return [
        ("--refine-resolution", refine.refine_resolution, limits.max_refine_resolution),
        ("--refine-views-per-step", refine.refine_views_per_step, limits.max_views_per_step),
        ("--tetrahedra-resolution", refine.tetrahedra_resolution, limits.max_mesh_resolution),
    ]


def check_queue(waiting: int, limits: LimitsConfig) -> None:
    """Raise QueueFull where no more than `waiting` jobs may wait."""
    if waiting >= limits.max_queued:
        raise QueueFull(
            f"{waiting} jobs are waiting, as many as may wait: try again when one is finished, "
            "or cancel one"
        )


def check_disk(folder: Path, limits: LimitsConfig) -> None:
    """Raise DiskLow where too little is left for another run in `folder`."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise output_error(error, folder) from error
    if free < limits.min_free_bytes:
        raise DiskLow(free, limits.min_free_bytes)
