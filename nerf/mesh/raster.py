"""A small z-buffer renderer for triangle meshes on the CPU, so that previews show the real mesh."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nerf.mesh.textured_mesh import TexturedMesh

# Nothing nearer to the camera than this is drawn; a face reaching nearer is left out whole.
NEAR = 1e-3


@dataclass(frozen=True, kw_only=True)
class Shading:
    """One directional light fixed to the camera, over an ambient term.

    light: [3] direction towards the light in camera space (+X right, +Y up, +Z to the viewer).
    ambient: the share of the colour that needs no light; 1 shows the bare albedo.
    """

    light: tuple[float, float, float] = (0.35, 0.6, 0.72)
    ambient: float = 0.55
    background: tuple[float, float, float] = (0.93, 0.94, 0.96)
    supersampling: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.ambient <= 1:
            raise ValueError(f"ambient must lie in [0, 1], got {self.ambient}.")
        if self.supersampling < 1:
            raise ValueError(f"supersampling must be at least 1, got {self.supersampling}.")
        if not np.linalg.norm(self.light) > 0:
            raise ValueError("light must not be the zero vector.")


def render_mesh(
    mesh: TexturedMesh,
    c2w: NDArray[np.floating],
    fovy_deg: float,
    height: int,
    width: int,
    shading: Shading | None = None,
) -> NDArray[np.uint8]:
    """Frames [V, H, W, 3] uint8 of the mesh seen by OpenGL cameras c2w [V, 4, 4].

    Back faces are culled, as glTF viewers do: a wrongly wound mesh looks wrong here too.
    """
    shading = shading or Shading()
    samples = shading.supersampling
    frames = np.empty((len(c2w), height, width, 3), dtype=np.uint8)
    uv = mesh.uv if mesh.uv is not None else np.zeros((0, 2), dtype=np.float32)
    texture = mesh.texture if mesh.texture is not None else np.zeros((0, 0, 3), dtype=np.uint8)
    if mesh.vertex_colors is not None:
        colors = mesh.vertex_colors.astype(np.float32)
    else:
        colors = np.ones((len(mesh.vertices), 3), dtype=np.float32)
    light = np.asarray(shading.light, dtype=np.float64)
    light = light / np.linalg.norm(light)

    def draw(view: int) -> None:
        pose = np.asarray(c2w[view], dtype=np.float64)
        screen = project(mesh.vertices, pose, fovy_deg, height * samples, width * samples)
        depth = np.zeros((height * samples, width * samples), dtype=np.float32)
        face_index = np.full((height * samples, width * samples), -1, dtype=np.int32)
        _rasterize(screen, mesh.faces, depth, face_index)
        _shade(
            screen,
            mesh.faces,
            np.ascontiguousarray(mesh.normals, dtype=np.float32),
            colors,
            np.ascontiguousarray(uv, dtype=np.float32),
            np.ascontiguousarray(texture),
            face_index,
            pose[:3, :3] @ light,
            shading.ambient,
            np.asarray(shading.background, dtype=np.float64),
            samples,
            frames[view],
        )

    _for_each_view(draw, len(c2w))
    return frames


def mesh_silhouettes(
    vertices: np.ndarray,
    faces: np.ndarray,
    c2w: NDArray[np.floating],
    fovy_deg: float,
    height: int,
    width: int,
) -> NDArray[np.bool_]:
    """[V, H, W]: the pixels whose centre is covered by a front face."""
    return visible_faces(vertices, faces, c2w, fovy_deg, height, width)[0] >= 0


def visible_faces(
    vertices: np.ndarray,
    faces: np.ndarray,
    c2w: NDArray[np.floating],
    fovy_deg: float,
    height: int,
    width: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The front face at each pixel centre [V, H, W], -1 for none, and its 1 / depth there."""
    face_index = np.full((len(c2w), height, width), -1, dtype=np.int32)
    nearness = np.zeros((len(c2w), height, width), dtype=np.float32)
    faces = np.ascontiguousarray(faces, dtype=np.int32)

    def draw(view: int) -> None:
        screen = project(vertices, np.asarray(c2w[view], dtype=np.float64), fovy_deg, height, width)
        _rasterize(screen, faces, nearness[view], face_index[view])

    _for_each_view(draw, len(c2w))
    return face_index, nearness


def project(
    vertices: np.ndarray, c2w: NDArray[np.float64], fovy_deg: float, height: int, width: int
) -> NDArray[np.float64]:
    """[V, 3]: pixel column, pixel row (down; centres at half integers) and 1 / depth.

    1 / depth is affine on the screen, so it can be interpolated there; it is 0 for a vertex
    nearer than NEAR, or behind the camera.
    """
    camera = (vertices.astype(np.float64) - c2w[:3, 3]) @ c2w[:3, :3]
    depth = -camera[:, 2]
    visible = depth > NEAR
    inverse = np.where(visible, 1.0 / np.where(visible, depth, 1.0), 0.0)
    focal = 0.5 * height / np.tan(np.deg2rad(fovy_deg) / 2)
    column = 0.5 * width + focal * camera[:, 0] * inverse
    row = 0.5 * height - focal * camera[:, 1] * inverse
    return np.stack([column, row, inverse], axis=-1)


def _for_each_view(draw, count: int) -> None:
    # The kernels release the GIL, and a thread pool, unlike prange, does not fight torch's.
    with ThreadPoolExecutor(max_workers=max(1, min(count, os.cpu_count() or 1))) as pool:
        list(pool.map(draw, range(count)))


@njit(nogil=True, cache=True)
def _rasterize(screen, faces, depth, face_index):
    height, width = depth.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        wa, wb, wc = screen[a, 2], screen[b, 2], screen[c, 2]
        if wa <= 0.0 or wb <= 0.0 or wc <= 0.0:
            continue
        ax, ay = screen[a, 0], screen[a, 1]
        bx, by = screen[b, 0], screen[b, 1]
        cx, cy = screen[c, 0], screen[c, 1]
        # Rows grow downward, so a counter-clockwise (front) face has a negative cross product.
        area = (cx - ax) * (by - ay) - (bx - ax) * (cy - ay)
        if area <= 0.0:
            continue
        first_row = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0)
        last_row = min(int(np.floor(max(ay, by, cy) - 0.5)), height - 1)
        first_column = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0)
        last_column = min(int(np.floor(max(ax, bx, cx) - 0.5)), width - 1)
        if first_row > last_row or first_column > last_column:
            continue
        inverse_area = 1.0 / area
        for row in range(first_row, last_row + 1):
            py = row + 0.5
            for column in range(first_column, last_column + 1):
                px = column + 0.5
                u = ((cx - px) * (by - py) - (bx - px) * (cy - py)) * inverse_area
                v = ((ax - px) * (cy - py) - (cx - px) * (ay - py)) * inverse_area
                w = 1.0 - u - v
                if u < 0.0 or v < 0.0 or w < 0.0:
                    continue
                nearness = np.float32(u * wa + v * wb + w * wc)
                if nearness > depth[row, column]:
                    depth[row, column] = nearness
                    face_index[row, column] = f


@njit(nogil=True, cache=True)
def _shade(
    screen,
    faces,
    normals,
    colors,
    uv,
    texture,
    face_index,
    light,
    ambient,
    background,
    samples,
    out,
):
    textured = uv.shape[0] > 0
    tex_height, tex_width = texture.shape[0], texture.shape[1]
    scale = 255.0 / (samples * samples)
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            red, green, blue = 0.0, 0.0, 0.0
            for sub_row in range(row * samples, (row + 1) * samples):
                for sub_column in range(column * samples, (column + 1) * samples):
                    f = face_index[sub_row, sub_column]
                    if f < 0:
                        red += background[0]
                        green += background[1]
                        blue += background[2]
                        continue
                    a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
                    px, py = sub_column + 0.5, sub_row + 0.5
                    ax, ay = screen[a, 0] - px, screen[a, 1] - py
                    bx, by = screen[b, 0] - px, screen[b, 1] - py
                    cx, cy = screen[c, 0] - px, screen[c, 1] - py
                    # Perspective-correct weights: screen weights times 1 / depth, renormalised.
                    u = (cx * by - bx * cy) * screen[a, 2]
                    v = (ax * cy - cx * ay) * screen[b, 2]
                    w = (bx * ay - ax * by) * screen[c, 2]
                    total = u + v + w
                    u /= total
                    v /= total
                    w /= total
                    nx = u * normals[a, 0] + v * normals[b, 0] + w * normals[c, 0]
                    ny = u * normals[a, 1] + v * normals[b, 1] + w * normals[c, 1]
                    nz = u * normals[a, 2] + v * normals[b, 2] + w * normals[c, 2]
                    length = max(np.sqrt(nx * nx + ny * ny + nz * nz), 1e-12)
                    lambert = (nx * light[0] + ny * light[1] + nz * light[2]) / length
                    shade = ambient + (1.0 - ambient) * max(lambert, 0.0)
                    r = u * colors[a, 0] + v * colors[b, 0] + w * colors[c, 0]
                    g = u * colors[a, 1] + v * colors[b, 1] + w * colors[c, 1]
                    bl = u * colors[a, 2] + v * colors[b, 2] + w * colors[c, 2]
                    if textured:
                        x = (u * uv[a, 0] + v * uv[b, 0] + w * uv[c, 0]) * tex_width - 0.5
                        y = (u * uv[a, 1] + v * uv[b, 1] + w * uv[c, 1]) * tex_height - 0.5
                        x = min(max(x, 0.0), tex_width - 1.0)
                        y = min(max(y, 0.0), tex_height - 1.0)
                        x0, y0 = int(x), int(y)
                        x1, y1 = min(x0 + 1, tex_width - 1), min(y0 + 1, tex_height - 1)
                        fx, fy = x - x0, y - y0
                        w00, w01 = (1 - fx) * (1 - fy) / 255.0, fx * (1 - fy) / 255.0
                        w10, w11 = (1 - fx) * fy / 255.0, fx * fy / 255.0
                        r *= (
                            w00 * texture[y0, x0, 0]
                            + w01 * texture[y0, x1, 0]
                            + w10 * texture[y1, x0, 0]
                            + w11 * texture[y1, x1, 0]
                        )
                        g *= (
                            w00 * texture[y0, x0, 1]
                            + w01 * texture[y0, x1, 1]
                            + w10 * texture[y1, x0, 1]
                            + w11 * texture[y1, x1, 1]
                        )
                        bl *= (
                            w00 * texture[y0, x0, 2]
                            + w01 * texture[y0, x1, 2]
                            + w10 * texture[y1, x0, 2]
                            + w11 * texture[y1, x1, 2]
                        )
                    red += r * shade
                    green += g * shade
                    blue += bl * shade
            out[row, column, 0] = np.uint8(min(max(red * scale + 0.5, 0.0), 255.0))
            out[row, column, 1] = np.uint8(min(max(green * scale + 0.5, 0.0), 255.0))
            out[row, column, 2] = np.uint8(min(max(blue * scale + 0.5, 0.0), 255.0))
