"""Colour for a mesh: a UV atlas with a baked texture, or one colour per vertex."""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nerf.mesh.iso_surface import PointFunction
from nerf.mesh.textured_mesh import FloatArray, IntArray, TexturedMesh, vertex_normals

# Empty texels between charts, so that bilinear lookups and the first mip levels stay in a chart.
CHART_PADDING_TEXELS = 4


class AtlasUnavailableError(RuntimeError):
    """The package xatlas is not installed, so no UV atlas can be made."""


def unwrap(
    vertices: FloatArray, faces: IntArray, *, texture_size: int
) -> tuple[IntArray, IntArray, FloatArray]:
    """A UV atlas by xatlas: (source vertex [W], faces [F, 3], uv [W, 2] with v downward).

    Vertices on the charts' borders are repeated. Raises AtlasUnavailableError without xatlas.
    """
    try:
        import xatlas
    except ImportError as error:
        raise AtlasUnavailableError(
            "a baked texture needs the package xatlas, which has no build for this Python; "
            'use colors="vertex", or Python 3.13 or older.'
        ) from error
    atlas = xatlas.Atlas()
    atlas.add_mesh(
        np.ascontiguousarray(vertices, dtype=np.float32),
        np.ascontiguousarray(faces, dtype=np.uint32),
    )
    packing = xatlas.PackOptions()
    packing.resolution = texture_size
    packing.padding = CHART_PADDING_TEXELS
    packing.bilinear = True
    atlas.generate(xatlas.ChartOptions(), packing)
    source, new_faces, uv = atlas.get_mesh(0)
    return source.astype(np.int32), new_faces.astype(np.int32), uv.astype(np.float32)


def texel_positions(
    vertices: FloatArray, faces: IntArray, uv: FloatArray, texture_size: int
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Surface positions [T, T, 3] of the texels whose centre lies in a chart, and that mask."""
    positions = np.zeros((texture_size, texture_size, 3), dtype=np.float32)
    covered = np.zeros((texture_size, texture_size), dtype=np.bool_)
    _rasterize_uv(vertices, faces, uv, positions, covered)
    return positions, covered


def bake_texture(
    vertices: FloatArray,
    faces: IntArray,
    albedo: PointFunction,
    *,
    texture_size: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TexturedMesh:
    """Unwrap, and colour each texel by albedo (points [N, 3] -> [N, 3]) at its surface position.

    Every texel outside the charts takes the colour of the nearest one inside, so that no filter
    however wide finds a black seam.
    """
    if texture_size < 16:
        raise ValueError(f"texture_size must be at least 16, got {texture_size}.")
    source, faces, uv = unwrap(vertices, faces, texture_size=texture_size)
    normals = vertex_normals(vertices, faces=source[faces])
    vertices = np.ascontiguousarray(vertices[source])
    positions, covered = texel_positions(vertices, faces, uv, texture_size)
    texture = np.zeros((texture_size, texture_size, 3), dtype=np.uint8)
    colors = evaluate_albedo(albedo, positions[covered], device=device, dtype=dtype)
    texture[covered] = np.round(colors * 255).astype(np.uint8)
    nearest = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    assert isinstance(nearest, np.ndarray)
    texture = texture[nearest[0], nearest[1]]
    return TexturedMesh(
        vertices=vertices, faces=faces, normals=normals[source], uv=uv, texture=texture
    )


def color_vertices(
    vertices: FloatArray,
    faces: IntArray,
    albedo: PointFunction,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TexturedMesh:
    """One colour per vertex: no atlas, detail only as fine as the triangles."""
    return TexturedMesh(
        vertices=vertices,
        faces=faces,
        normals=vertex_normals(vertices, faces),
        vertex_colors=evaluate_albedo(albedo, vertices, device=device, dtype=dtype),
    )


def evaluate_albedo(
    albedo: PointFunction,
    points: FloatArray,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    chunk_points: int = 1 << 18,
) -> FloatArray:
    """[N, 3] colours in [0, 1] at points [N, 3], in chunks and without gradient.

    Points are clamped to the cube [-1, 1]^3, where the field is defined: a surface closed at the
    cube's border lies a fraction of a cell outside. Raises ValueError on NaN.
    """
    colors = np.empty((len(points), 3), dtype=np.float32)
    with torch.no_grad():
        for start in range(0, len(points), chunk_points):
            chunk = torch.from_numpy(points[start : start + chunk_points]).to(device, dtype)
            value = albedo(chunk.clamp(-1.0, 1.0)).to(torch.float32)
            colors[start : start + chunk_points] = value.cpu().numpy()
    if not np.isfinite(colors).all():
        raise ValueError("albedo is NaN or infinite on the surface; the field is damaged.")
    return np.clip(colors, 0.0, 1.0)


@njit(nogil=True, cache=True)
def _rasterize_uv(vertices, faces, uv, positions, covered):
    height, width = covered.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay = uv[a, 0] * width, uv[a, 1] * height
        bx, by = uv[b, 0] * width, uv[b, 1] * height
        cx, cy = uv[c, 0] * width, uv[c, 1] * height
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if area == 0.0:
            continue
        inverse_area = 1.0 / area
        first_row = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0)
        last_row = min(int(np.floor(max(ay, by, cy) - 0.5)), height - 1)
        first_column = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0)
        last_column = min(int(np.floor(max(ax, bx, cx) - 0.5)), width - 1)
        for row in range(first_row, last_row + 1):
            py = row + 0.5
            for column in range(first_column, last_column + 1):
                px = column + 0.5
                u = ((bx - px) * (cy - py) - (cx - px) * (by - py)) * inverse_area
                v = ((cx - px) * (ay - py) - (ax - px) * (cy - py)) * inverse_area
                w = 1.0 - u - v
                if u < -1e-6 or v < -1e-6 or w < -1e-6:
                    continue
                covered[row, column] = True
                for axis in range(3):
                    positions[row, column, axis] = (
                        u * vertices[a, axis] + v * vertices[b, axis] + w * vertices[c, axis]
                    )
