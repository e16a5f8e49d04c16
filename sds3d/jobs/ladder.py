"""What to make smaller when memory does not suffice, one rung after the other."""

from __future__ import annotations

import dataclasses

from sds3d.config import GenerateConfig

Rung = tuple[GenerateConfig, str]


def next_rung(
    config: GenerateConfig, *, stage: str = "optimize", together: int | None = 1
) -> Rung | None:
    """The same request with less memory and what was made smaller, None at the lowest rung.

    First the views of a step, then their resolution, that of a second stage, then the grid of the
    mesh and its texture: the field itself keeps its size, so that what it can show stays the same.
    Of these only what the stage in which memory ran out has to do with, or what comes after it;
    what was optimised before that stage is kept (`sds3d.jobs.folders.carry_over`).
    The teacher judges `together` views of an object at once, and so many stay together; None where
    that is not known, and then the views are left alone.
    """
    rungs = (_fewer_views, _smaller_views, _smaller_second_stage, _smaller_mesh)
    first = {"refine": 2, "mesh": 3, "export": 3}.get(stage, 0)
    for rung in rungs[first:]:
        if (found := rung(config, together)) is not None:
            return found
    return None


def _fewer_views(config: GenerateConfig, together: int | None) -> Rung | None:
    now = config.optimize.views_per_step
    views = _fewer(now, together)
    if views == now:
        return None
    options = dataclasses.replace(config.optimize, views_per_step=views)
    return dataclasses.replace(config, optimize=options), f"{views} instead of {now} views per step"


def _fewer(views: int, together: int | None) -> int:
    """Half as many, in whole groups; no fewer than one group."""
    if together is None or views <= together:
        return views
    return max(together, views // 2 // together * together)


def _smaller_views(config: GenerateConfig, _: int | None) -> Rung | None:
    sides = config.optimize.resolutions
    if max(sides) <= 32:
        return None
    options = dataclasses.replace(
        config.optimize, resolutions=tuple(min(32, side) for side in sides)
    )
    return dataclasses.replace(config, optimize=options), "views of 32 pixels"


def _smaller_second_stage(config: GenerateConfig, together: int | None) -> Rung | None:
    refine = config.optimize.refine
    if refine.refine_steps == 0 or refine.refine_resolution <= 256:
        return None
    views = refine.refine_views_per_step
    # Of another teacher it is not known here how many views it judges together.
    if together is not None and not refine.refine_teacher:
        views = min(views, together)
    refine = dataclasses.replace(refine, refine_resolution=256, refine_views_per_step=views)
    options = dataclasses.replace(config.optimize, refine=refine)
    text = "views of 256 pixels in the second stage"
    return dataclasses.replace(config, optimize=options), text


def _smaller_mesh(config: GenerateConfig, _: int | None) -> Rung | None:
    mesh = config.mesh
    if mesh.mesh_resolution <= 64 and mesh.texture_size <= 512:
        return None
    cells, pixels = _halved(mesh.mesh_resolution, 64), _halved(mesh.texture_size, 512)
    smaller = dataclasses.replace(mesh, mesh_resolution=cells, texture_size=pixels)
    text = f"a mesh from a grid of {cells} cells along an axis"
    text += f" and a texture of {pixels} pixels" if pixels else ""
    return dataclasses.replace(config, mesh=smaller), text


def _halved(value: int, least: int) -> int:
    return value if value <= least else max(least, value // 2)
