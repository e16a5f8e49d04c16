"""What to make smaller when memory does not suffice, one rung after the other."""

from __future__ import annotations

import dataclasses

from sds3d.config import GenerateConfig


def next_rung(config: GenerateConfig) -> tuple[GenerateConfig, str] | None:
    """The same request with less memory and what was made smaller, None at the lowest rung.

    First the views of a step, then their resolution, that of a second stage, then the grid of the
    mesh and its texture: the field itself keeps its size, so that what it can show stays the same.
    """
    options, mesh = config.optimize, config.mesh
    if options.views_per_step > 1:
        views = max(1, options.views_per_step // 2)
        text = f"{views} instead of {options.views_per_step} views per step"
        return _with(config, dataclasses.replace(options, views_per_step=views)), text
    if max(options.resolutions) > 32:
        sides = tuple(min(32, side) for side in options.resolutions)
        text = "views of 32 pixels"
        return _with(config, dataclasses.replace(options, resolutions=sides)), text
    if options.refine.refine_steps > 0 and options.refine.refine_resolution > 256:
        refine = dataclasses.replace(options.refine, refine_resolution=256, refine_views_per_step=1)
        text = "views of 256 pixels in the second stage"
        return _with(config, dataclasses.replace(options, refine=refine)), text
    if mesh.mesh_resolution > 64 or mesh.texture_size > 512:
        smaller = dataclasses.replace(
            mesh,
            mesh_resolution=min(64, mesh.mesh_resolution),
            texture_size=min(512, mesh.texture_size),
        )
        return dataclasses.replace(config, mesh=smaller), "a coarser mesh and a smaller texture"
    return None


def _with(config: GenerateConfig, options: object) -> GenerateConfig:
    return dataclasses.replace(config, optimize=options)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the system or the device had no memory left."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
