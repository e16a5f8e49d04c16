"""Pictures of a mesh file by ray casting (trimesh and embree), from the file's own data alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from trimesh.visual import TextureVisuals

from sds3d.errors import Sds3dError
from sds3d.evaluate.exact import LOOK_AT

FOVY_DEG = 40.0
DISTANCE = 2.6
"""From the point looked at: every mesh of longest side 1 is wholly in the picture."""

ELEVATION_DEG = 20.0
SIDE = 64
"""Pixels along each side, one ray through each pixel's centre."""


class UnreadableMesh(Sds3dError):
    """The file is missing, or another program cannot read a mesh from it."""


@dataclass(frozen=True, kw_only=True)
class SeenMesh:
    """A mesh as read from its file, in the cameras' coordinates.

    Attributes:
        mesh: Vertices, faces and nothing else.
        uv: [V, 2], origin at the picture's lower left corner, or None.
        texture: [H, W, 3] uint8 or None.
        colors: [V, 3] sRGB in [0, 1], or None.
    """

    mesh: trimesh.Trimesh
    uv: np.ndarray | None
    texture: np.ndarray | None
    colors: np.ndarray | None


def require_embree() -> None:
    """Raise Sds3dError with the remedy where rays cannot be cast."""
    try:
        import embreex.rtcore_scene  # noqa: F401
    except ImportError as error:
        raise Sds3dError(
            "the evaluation casts rays with embreex, which is not installed: pip install embreex"
        ) from error


def read_glb(path: Path) -> SeenMesh:
    """The mesh in a GLB file. Raises UnreadableMesh."""
    try:
        scene = trimesh.load_scene(path, process=False)
    except Exception as error:
        raise UnreadableMesh(f"{path.name} cannot be read: {error}") from error
    nodes = scene.graph.nodes_geometry
    if len(nodes) != 1:
        raise UnreadableMesh(f"{path.name} holds {len(nodes)} meshes instead of one")
    pose, name = scene.graph[nodes[0]]
    mesh = scene.geometry[name]
    if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
        raise UnreadableMesh(f"{path.name} holds no triangles")
    if not np.isfinite(mesh.vertices).all():
        raise UnreadableMesh(f"{path.name} holds vertices that are not finite")
    uv = texture = colors = None
    visual = mesh.visual
    if isinstance(visual, TextureVisuals):
        image = getattr(visual.material, "baseColorTexture", None)
        if image is not None and visual.uv is not None:
            uv = np.asarray(visual.uv, np.float64)
            texture = np.asarray(image.convert("RGB"))
        elif "color" in visual.vertex_attributes:
            colors = _srgb(np.asarray(visual.vertex_attributes["color"])[:, :3])
    elif visual is not None and visual.kind == "vertex":
        colors = _srgb(np.asarray(visual.vertex_colors)[:, :3])
    vertices = trimesh.transform_points(mesh.vertices, pose) - LOOK_AT
    plain = trimesh.Trimesh(vertices, mesh.faces, process=False)
    return SeenMesh(mesh=plain, uv=uv, texture=texture, colors=colors)


def _srgb(stored: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] of glTF's vertex colours, which are linear and here as they were stored."""
    linear = np.asarray(stored, np.float64)
    if stored.dtype.kind == "u":
        linear = linear / np.iinfo(stored.dtype).max
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def camera_rays(
    azimuth_deg: float, elevation_deg: float = ELEVATION_DEG
) -> tuple[np.ndarray, np.ndarray]:
    """Origin [3] and unit directions [SIDE, SIDE, 3] of a camera that looks at the origin.

    Azimuth 0 looks at the front from +Z, 90 from +X; rows run downward.
    """
    az, el = np.radians([azimuth_deg, elevation_deg])
    back = np.array([np.cos(el) * np.sin(az), np.sin(el), np.cos(el) * np.cos(az)])
    right = np.array([np.cos(az), 0.0, -np.sin(az)])
    up = np.cross(back, right)
    across = ((2.0 * np.arange(SIDE) + 1.0) / SIDE - 1.0) * np.tan(np.radians(FOVY_DEG) / 2)
    rays = across[None, :, None] * right - across[:, None, None] * up - back
    return DISTANCE * back, rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def render(seen: SeenMesh, azimuths_deg: np.ndarray) -> np.ndarray:
    """Unlit views, float32 [V, SIDE, SIDE, 4]: colour (0 off the mesh) and 0 or 1.

    What the surface is painted with is shown as it is; a mesh without paint is grey.
    """
    from trimesh.ray.ray_pyembree import RayMeshIntersector

    views = [camera_rays(float(azimuth)) for azimuth in azimuths_deg]
    rays_d = np.concatenate([rays.reshape(-1, 3) for _, rays in views])
    rays_o = np.repeat([origin for origin, _ in views], SIDE * SIDE, axis=0)
    face = RayMeshIntersector(seen.mesh).intersects_first(rays_o, rays_d)
    hit = np.flatnonzero(face >= 0)
    face = face[hit]
    corner = seen.mesh.faces[face]
    share = _barycentric(seen.mesh.triangles[face], rays_o[hit], rays_d[hit])
    image = np.zeros((len(rays_d), 4), np.float32)
    image[hit, :3] = _paint(seen, corner, share)
    image[hit, 3] = 1.0
    return image.reshape(len(views), SIDE, SIDE, 4)


def _barycentric(triangles: np.ndarray, rays_o: np.ndarray, rays_d: np.ndarray) -> np.ndarray:
    """Shares [N, 3] of the corners of triangles [N, 3, 3] at the points where rays meet them."""
    a = triangles[:, 0]
    e1, e2 = triangles[:, 1] - a, triangles[:, 2] - a
    p = np.cross(rays_d, e2)
    determinant = (e1 * p).sum(1)
    safe = np.where(np.abs(determinant) < 1e-18, 1.0, determinant)
    s = rays_o - a
    u = (s * p).sum(1) / safe
    v = (rays_d * np.cross(s, e1)).sum(1) / safe
    # A ray may graze a triangle's edge by rounding.
    share = np.clip(np.stack([1.0 - u - v, u, v], 1), 0.0, 1.0)
    return share / share.sum(1, keepdims=True)


def _paint(seen: SeenMesh, corner: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Colours [N, 3] in [0, 1] at points given by corners [N, 3] and their shares [N, 3]."""
    if seen.uv is not None and seen.texture is not None:
        uv = (seen.uv[corner] * share[:, :, None]).sum(1)
        return _look_up(seen.texture, uv)
    if seen.colors is not None:
        return (seen.colors[corner] * share[:, :, None]).sum(1)
    return np.full((len(corner), 3), 0.5)


def _look_up(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear, clamped at the borders; uv [N, 2] has its origin at the lower left corner."""
    height, width = texture.shape[:2]
    x = np.clip(uv[:, 0] * width - 0.5, 0, width - 1)
    y = np.clip((1.0 - uv[:, 1]) * height - 0.5, 0, height - 1)
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    upper = texture[y0, x0] * (1 - fx) + texture[y0, x1] * fx
    lower = texture[y1, x0] * (1 - fx) + texture[y1, x1] * fx
    return (upper * (1 - fy) + lower * fy) / 255.0
