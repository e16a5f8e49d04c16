"""Numba kernels over packed parts: signed distance, sphere tracing, shading.

Everything releases the GIL, so a thread pool renders many images at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from sds3d.toybox.shapes import Solid

FOVY_DEG = 40.0
DISTANCE = 2.9
RADIUS = 0.9  # every object fits in this sphere about the origin


@dataclass(frozen=True, kw_only=True)
class Light:
    """A soft sky and one distant lamp, both fixed to the object's axes, never to the camera.

    Attributes:
        direction: Unit vector toward the lamp.
        ambient: Share of the sky (brighter from above), the lamp has the rest.
    """

    direction: tuple[float, float, float] = (0.26, 0.90, 0.35)
    ambient: float = 0.74


@njit(nogil=True, cache=True, fastmath=True)
def _part_distance(kind, s, x, y, z):
    if kind == 0 or kind == 6:  # ellipsoid: first-order distance k0 (k0 - 1) / k1
        ax, ay, az = x / s[0], y / s[1], z / s[2]
        k0 = math.sqrt(ax * ax + ay * ay + az * az)
        bx, by, bz = ax / s[0], ay / s[1], az / s[2]
        k1 = math.sqrt(bx * bx + by * by + bz * bz)
        d = k0 * (k0 - 1.0) / k1 if k1 > 1e-9 else -min(s[0], min(s[1], s[2]))
        if kind == 6:
            return max(d, -y)
        return d
    if kind == 1:
        r = s[3]
        qx, qy, qz = abs(x) - s[0] + r, abs(y) - s[1] + r, abs(z) - s[2] + r
        ox, oy, oz = max(qx, 0.0), max(qy, 0.0), max(qz, 0.0)
        return math.sqrt(ox * ox + oy * oy + oz * oz) + min(max(qx, max(qy, qz)), 0.0) - r
    if kind == 2:  # cone between two spheres
        r1, r2, h = s[0], s[1], s[2]
        q = math.sqrt(x * x + z * z)
        b = (r1 - r2) / h
        a = math.sqrt(max(1.0 - b * b, 0.0))
        k = -b * q + a * y
        if k < 0.0:
            return math.sqrt(q * q + y * y) - r1
        if k > a * h:
            return math.sqrt(q * q + (y - h) * (y - h)) - r2
        return a * q + b * y - r1
    if kind == 3:
        r = s[2]
        qx, qy = math.sqrt(x * x + z * z) - s[0] + r, abs(y) - s[1] + r
        ox, oy = max(qx, 0.0), max(qy, 0.0)
        return math.sqrt(ox * ox + oy * oy) + min(max(qx, qy), 0.0) - r
    if kind == 4:  # capped cone
        r = s[3]
        r1, r2, h = s[0] - r, s[1] - r, s[2] - r
        q = math.sqrt(x * x + z * z)
        k2x, k2y = r2 - r1, 2.0 * h
        cax = q - min(q, r1 if y < 0.0 else r2)
        cay = abs(y) - h
        t = ((r2 - q) * k2x + (h - y) * k2y) / (k2x * k2x + k2y * k2y)
        t = min(max(t, 0.0), 1.0)
        cbx, cby = q - r2 + k2x * t, y - h + k2y * t
        sign = -1.0 if (cbx < 0.0 and cay < 0.0) else 1.0
        return sign * math.sqrt(min(cax * cax + cay * cay, cbx * cbx + cby * cby)) - r
    if kind == 5:
        q = math.sqrt(x * x + z * z) - s[0]
        return math.sqrt(q * q + y * y) - s[1]
    if kind == 7:  # a cup: outer rounded cylinder less an inner one that is open above
        q = math.sqrt(x * x + z * z)
        r = 0.4 * s[2]
        qx, qy = q - s[0] + r, abs(y) - s[1] + r
        ox, oy = max(qx, 0.0), max(qy, 0.0)
        outer = math.sqrt(ox * ox + oy * oy) + min(max(qx, qy), 0.0) - r
        inner = max(q - (s[0] - s[2]), (-s[1] + s[2]) - y)
        return max(outer, -inner)
    if kind == 8:  # gable roof: two slopes, floor and two gables
        w, h, r = s[0], s[1], s[3]
        n = math.sqrt(w * w + h * h)
        slope = (abs(x) * h + (y - h) * w) / n
        return max(max(slope, -y), abs(z) - s[2]) + r * 0.0
    # hull: half an ellipsoid below y = 0, hollowed, pointed toward +z
    zz = z / s[2]
    w = s[0] * max(1.0 - s[3] * max(zz, 0.0) * max(zz, 0.0), 0.15)
    ax, ay, az = x / w, y / s[1], zz
    k0 = math.sqrt(ax * ax + ay * ay + az * az)
    bx, by, bz = ax / w, ay / s[1], az / s[2]
    k1 = math.sqrt(bx * bx + by * by + bz * bz)
    d = k0 * (k0 - 1.0) / k1 if k1 > 1e-9 else -s[1]
    hollow = (k0 - 0.78) * 0.6 * min(w, s[1])
    return max(max(0.8 * d, y), -max(hollow, -0.35 * s[1] - y))


@njit(nogil=True, cache=True, fastmath=True)
def _distance(px, py, pz, prims, sizes, centers, rots, blends, bounds):
    """Signed distance of the union, and the index of the nearest part."""
    best = 1e9
    nearest = 1e9
    index = 0
    for i in range(prims.shape[0]):
        dx, dy, dz = px - centers[i, 0], py - centers[i, 1], pz - centers[i, 2]
        k = blends[i]
        gap = math.sqrt(dx * dx + dy * dy + dz * dz) - bounds[i]
        if gap > best + k and gap > nearest:
            continue
        x = rots[i, 0, 0] * dx + rots[i, 1, 0] * dy + rots[i, 2, 0] * dz
        y = rots[i, 0, 1] * dx + rots[i, 1, 1] * dy + rots[i, 2, 1] * dz
        z = rots[i, 0, 2] * dx + rots[i, 1, 2] * dy + rots[i, 2, 2] * dz
        d = _part_distance(prims[i], sizes[i], x, y, z)
        if d < nearest:
            nearest = d
            index = i
        if k > 0.0 and abs(best - d) < k:
            h = (k - abs(best - d)) / k
            best = min(best, d) - h * h * k * 0.25
        elif d < best:
            best = d
    return best, index


@njit(nogil=True, cache=True, fastmath=True)
def _distances(points, prims, sizes, centers, rots, blends, bounds):
    out = np.empty(points.shape[0])
    for i in range(points.shape[0]):
        out[i] = _distance(
            points[i, 0], points[i, 1], points[i, 2], prims, sizes, centers, rots, blends, bounds
        )[0]
    return out


@njit(nogil=True, cache=True, fastmath=True)
def _nearest_colors(points, prims, sizes, centers, rots, colors, blends, bounds):
    out = np.empty((points.shape[0], 3))
    for i in range(points.shape[0]):
        k = _distance(
            points[i, 0], points[i, 1], points[i, 2], prims, sizes, centers, rots, blends, bounds
        )[1]
        out[i] = colors[k]
    return out


@njit(nogil=True, cache=True, fastmath=True)
def _render(
    prims, sizes, centers, rots, colors, blends, bounds,
    azimuth_deg, elevation_deg, distance, fovy_deg, size, supersample, light, ambient, radius, out,
):  # fmt: skip
    """Premultiplied RGBA into out [size, size, 4], float64 in [0, 1]."""
    az, el = math.radians(azimuth_deg), math.radians(elevation_deg)
    ox, oy, oz = (
        distance * math.cos(el) * math.sin(az),
        distance * math.sin(el),
        distance * math.cos(el) * math.cos(az),
    )
    fx, fy, fz = -ox / distance, -oy / distance, -oz / distance
    rx, rz = math.cos(az), -math.sin(az)  # camera right, horizontal
    ux, uy, uz = (
        -math.sin(el) * math.sin(az),
        math.cos(el),
        -math.sin(el) * math.cos(az),
    )
    tan = math.tan(math.radians(fovy_deg) * 0.5)
    n = size * supersample
    weight = 1.0 / (supersample * supersample)
    for row in range(n):
        v = (1.0 - (2.0 * row + 1.0) / n) * tan
        for col in range(n):
            u = ((2.0 * col + 1.0) / n - 1.0) * tan
            dx, dy, dz = fx + u * rx + v * ux, fy + v * uy, fz + u * rz + v * uz
            inv = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
            dx, dy, dz = dx * inv, dy * inv, dz * inv
            b = ox * dx + oy * dy + oz * dz
            disc = b * b - distance * distance + radius * radius
            if disc <= 0.0:
                continue
            root = math.sqrt(disc)
            t, t_end = -b - root, -b + root
            hit = False
            for _ in range(80):
                d = _distance(
                    ox + t * dx, oy + t * dy, oz + t * dz,
                    prims, sizes, centers, rots, blends, bounds,
                )[0]  # fmt: skip
                if d < 0.0015:
                    hit = True
                    break
                t += 0.95 * d
                if t > t_end:
                    break
            if not hit:
                continue
            px, py, pz = ox + t * dx, oy + t * dy, oz + t * dz
            nx, ny, nz = 0.0, 0.0, 0.0
            e = 0.002
            for i in range(4):  # tetrahedron differences
                sx = 1.0 if i == 0 or i == 3 else -1.0
                sy = 1.0 if i == 1 or i == 3 else -1.0
                sz = 1.0 if i == 2 or i == 3 else -1.0
                d = _distance(
                    px + e * sx, py + e * sy, pz + e * sz,
                    prims, sizes, centers, rots, blends, bounds,
                )[0]  # fmt: skip
                nx, ny, nz = nx + sx * d, ny + sy * d, nz + sz * d
            inv = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz + 1e-20)
            nx, ny, nz = nx * inv, ny * inv, nz * inv
            occlusion = 1.0
            for i in range(2):  # two taps along the normal: contact shadows where parts meet
                h = 0.05 + 0.09 * i
                d = _distance(
                    px + h * nx, py + h * ny, pz + h * nz,
                    prims, sizes, centers, rots, blends, bounds,
                )[0]  # fmt: skip
                occlusion -= (0.35 / (i + 1.0)) * max(h - d, 0.0) / h
            part = _distance(px, py, pz, prims, sizes, centers, rots, blends, bounds)[1]
            lambert = max(nx * light[0] + ny * light[1] + nz * light[2], 0.0)
            shade = ambient * (0.86 + 0.14 * ny) * occlusion + (1.0 - ambient) * lambert * 1.15
            i, j = row // supersample, col // supersample
            for c in range(3):
                out[i, j, c] += weight * min(colors[part, c] * shade + 0.02 * shade, 1.0)
            out[i, j, 3] += weight


def signed_distance(solid: Solid, points: np.ndarray) -> np.ndarray:
    """Signed distance at points [N, 3]; negative inside. Returns float64 [N]."""
    a = solid.arrays()
    return _distances(np.ascontiguousarray(points, np.float64), *a[:4], *a[5:])


def surface_colors(solid: Solid, points: np.ndarray) -> np.ndarray:
    """sRGB of the part nearest to each of points [N, 3]. Returns float64 [N, 3]."""
    return _nearest_colors(np.ascontiguousarray(points, np.float64), *solid.arrays())


def render_rgba(
    solid: Solid,
    *,
    azimuth_deg: float,
    elevation_deg: float,
    distance: float = DISTANCE,
    fovy_deg: float = FOVY_DEG,
    size: int = 64,
    supersample: int = 2,
    light: Light | None = None,
) -> np.ndarray:
    """One view by sphere tracing, float64 [size, size, 4], colour premultiplied by alpha."""
    light = light or Light()
    direction = np.asarray(light.direction, np.float64)
    out = np.zeros((size, size, 4))
    view = (azimuth_deg, elevation_deg, distance, fovy_deg, size, supersample)
    unit = direction / np.linalg.norm(direction)
    kernel: Any = _render  # the type checker cannot count the solid's arrays
    kernel(*solid.arrays(), *view, unit, light.ambient, RADIUS * 1.06, out)
    return out
