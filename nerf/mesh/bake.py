"""Colour for a mesh: a UV atlas with a baked texture, or one colour per vertex."""

from collections.abc import Callable

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nerf.mesh.iso_surface import PointFunction
from nerf.mesh.textured_mesh import FloatArray, IntArray, TexturedMesh, vertex_normals

# Empty texels between charts, so that bilinear lookups and the first mip levels stay in a chart.
CHART_PADDING_TEXELS = 4

# Points [N, 3] on the surface and its unit outward normals [N, 3] to colours [N, 3].
SurfaceColor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# The short ray that gives a surface point its colour: world units, depth growing inward. A field
# trained by rendering has colours only where rays end, which is a little behind the level that
# matches its silhouettes. On a field fitted to pictures of a known object, the error of the mesh's
# colours was 66 of 255 with the albedo on the surface itself, 14 with rays from the surface
# inward, and 9 with rays that start outside, as the field's own pictures had 8.
COLOR_RAY_START = -0.03
COLOR_RAY_STEP = 0.02
COLOR_RAY_SAMPLES = 8


class NonFiniteColorError(ValueError):
    """The field's colour is NaN or infinite on the surface."""


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


def ray_color(density: PointFunction, albedo: PointFunction) -> SurfaceColor:
    """Colour as a camera right in front of the surface would see it, by volume rendering.

    c = sum_i w_i albedo(x_i) / sum_i w_i with w_i = T_i (1 - exp(-density(x_i) delta)) and
    T_i = prod_{j < i} exp(-density(x_j) delta) (Max 1995; NeRF, arXiv 2003.08934, equation 3),
    at points x_i along the inward normal. Points are clamped to the cube [-1, 1]^3, where the
    field is defined. Where nothing is met, the albedo of the surface point itself.
    """

    def color(points: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(points)
        weight_sum = points.new_zeros(len(points))
        transmittance = points.new_ones(len(points))
        alive = torch.arange(len(points), device=points.device)
        for i in range(COLOR_RAY_SAMPLES):
            depth = COLOR_RAY_START + (i + 0.5) * COLOR_RAY_STEP
            x = (points[alive] - depth * normals[alive]).clamp(-1.0, 1.0)
            alpha = 1 - torch.exp(-density(x).reshape(-1) * COLOR_RAY_STEP)
            weight = transmittance[alive] * alpha
            # Weights below 1/2 level of 255 are not worth asking for their colour.
            seen = weight > 2e-3
            index = alive[seen]
            if len(index) > 0:
                total[index] += weight[seen, None] * albedo(x[seen])
                weight_sum[index] += weight[seen]
            transmittance[alive] -= weight
            alive = alive[transmittance[alive] > 1e-2]
            if len(alive) == 0:
                break
        unseen = weight_sum < 1e-2
        if bool(unseen.any()):
            total[unseen] = albedo(points[unseen].clamp(-1.0, 1.0))
            weight_sum[unseen] = 1.0
        return total / weight_sum[:, None]

    return color


def texel_attributes(
    attributes: FloatArray, faces: IntArray, uv: FloatArray, texture_size: int
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Vertex attributes [V, K] interpolated at texels: [T, T, K], and which texels [T, T] are set.

    A texel is set if its centre lies in a face of the atlas.
    """
    values = np.zeros((texture_size, texture_size, attributes.shape[1]), dtype=np.float32)
    covered = np.zeros((texture_size, texture_size), dtype=np.bool_)
    _rasterize_uv(np.ascontiguousarray(attributes), faces, uv, values, covered)
    return values, covered


def bake_texture(
    vertices: FloatArray,
    faces: IntArray,
    color: SurfaceColor,
    *,
    texture_size: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TexturedMesh:
    """Unwrap, and colour each texel by `color` at its position on the surface.

    Every texel outside the charts takes the colour of the nearest one inside, so that no filter
    however wide finds a black seam. Raises AtlasUnavailableError without xatlas.
    """
    if texture_size < 16:
        raise ValueError(f"texture_size must be at least 16, got {texture_size}.")
    source, atlas_faces, uv = unwrap(vertices, faces, texture_size=texture_size)
    normals = vertex_normals(vertices, faces)[source]
    vertices = np.ascontiguousarray(vertices[source])
    surface = np.concatenate([vertices, normals], axis=1)
    values, covered = texel_attributes(surface, atlas_faces, uv, texture_size)
    values = values[covered]
    colors = evaluate_color(color, values[:, :3], values[:, 3:], device=device, dtype=dtype)
    texture = np.zeros((texture_size, texture_size, 3), dtype=np.uint8)
    texture[covered] = np.round(colors * 255).astype(np.uint8)
    nearest = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    assert isinstance(nearest, np.ndarray)
    texture = texture[nearest[0], nearest[1]]
    return TexturedMesh(
        vertices=vertices, faces=atlas_faces, normals=normals, uv=uv, texture=texture
    )


def color_vertices(
    vertices: FloatArray,
    faces: IntArray,
    color: SurfaceColor,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TexturedMesh:
    """One colour per vertex: no atlas, detail only as fine as the triangles."""
    normals = vertex_normals(vertices, faces)
    return TexturedMesh(
        vertices=vertices,
        faces=faces,
        normals=normals,
        vertex_colors=evaluate_color(color, vertices, normals, device=device, dtype=dtype),
    )


def evaluate_color(
    color: SurfaceColor,
    points: FloatArray,
    normals: FloatArray,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    chunk_points: int = 1 << 17,
) -> FloatArray:
    """[N, 3] colours in [0, 1] at points [N, 3] with normals [N, 3], in chunks, no gradient.

    Normals are made unit again after their interpolation. Raises NonFiniteColorError on NaN.
    """
    length = np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    normals = (normals / length).astype(np.float32)
    colors = np.empty((len(points), 3), dtype=np.float32)
    with torch.no_grad():
        for start in range(0, len(points), chunk_points):
            chunk = slice(start, start + chunk_points)
            x = torch.from_numpy(np.ascontiguousarray(points[chunk])).to(device, dtype)
            n = torch.from_numpy(normals[chunk]).to(device, dtype)
            colors[chunk] = color(x, n).to(torch.float32).cpu().numpy()
    if not np.isfinite(colors).all():
        raise NonFiniteColorError(
            "the field's colour is NaN or infinite on the surface; resume from an earlier "
            "checkpoint or lower the learning rate."
        )
    return np.clip(colors, 0.0, 1.0)


@njit(nogil=True, cache=True)
def _rasterize_uv(attributes, faces, uv, values, covered):
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
                for k in range(attributes.shape[1]):
                    values[row, column, k] = (
                        u * attributes[a, k] + v * attributes[b, k] + w * attributes[c, k]
                    )
