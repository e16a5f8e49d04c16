"""The density threshold whose surface has the field's own silhouettes."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nerf.mesh.iso_surface import LOG_DENSITY_FLOOR, DensityGrid, EmptySurfaceError

# More pixels than this along a side do not change the choice, only its cost.
MAX_PIXELS_PER_SIDE = 96
# Thresholds this close to the best IoU count as equally good, and the middle one is taken: at the
# plateau's edge the surface would be one small change of the field away from a worse silhouette.
IOU_TOLERANCE = 2e-3


@dataclass(frozen=True, kw_only=True)
class FieldViews:
    """What the field looks like from around: the evidence for choosing a threshold.

    opacity: [V, H, W] in [0, 1]. c2w: [V, 4, 4], OpenGL cameras. fovy_deg: vertical field of view.
    """

    opacity: NDArray[np.floating]
    c2w: NDArray[np.floating]
    fovy_deg: float

    def __post_init__(self) -> None:
        if self.opacity.ndim != 3:
            raise ValueError(f"opacity must be [V, H, W], got {list(self.opacity.shape)}.")
        if self.c2w.shape != (len(self.opacity), 4, 4):
            raise ValueError(
                f"c2w must be [{len(self.opacity)}, 4, 4], got {list(self.c2w.shape)}."
            )
        if not 0 < self.fovy_deg < 180:
            raise ValueError(f"fovy_deg must lie in (0, 180), got {self.fovy_deg}.")


@dataclass(frozen=True, kw_only=True)
class IsoThreshold:
    """density: the chosen threshold. iou: its predicted silhouette IoU, pooled over the views."""

    density: float
    iou: float


def choose_iso_threshold(grid: DensityGrid, views: FieldViews) -> IsoThreshold:
    """The threshold whose iso-surface best covers opacity > 0.5, by IoU over all views together.

    A ray meets the surface density == c exactly when the highest density along it exceeds c. So
    one pass of rays through the grid gives the silhouettes at *every* threshold, and sorting the
    pixels by that peak gives the IoU of every threshold at once: the search is exhaustive, and no
    candidate mesh is made. Raises EmptySurfaceError if no pixel of any view is opaque.
    """
    stride = max(1, -(-max(views.opacity.shape[1:]) // MAX_PIXELS_PER_SIDE))
    target = views.opacity[:, stride // 2 :: stride, stride // 2 :: stride] > 0.5
    if not target.any():
        raise EmptySurfaceError(
            "the field is transparent in every view (opacity never above 0.5): it is empty or "
            "fog. Train longer or raise the opacity regularisation."
        )
    peaks = peak_log_density(grid, views, stride=stride)
    order = np.argsort(peaks, axis=None, kind="stable")[::-1]
    sorted_peaks = peaks.reshape(-1)[order].astype(np.float64)
    intersection = np.cumsum(target.reshape(-1)[order])
    covered = np.arange(1, len(order) + 1)
    iou = intersection / (covered + intersection[-1] - intersection)
    floor = np.log(LOG_DENSITY_FLOOR)
    # A threshold can only fall where one pixel's peak is above it and the next one's is not.
    next_peaks = np.append(sorted_peaks[1:], floor)
    possible = (sorted_peaks > next_peaks) & (sorted_peaks > floor)
    if not possible.any():
        raise EmptySurfaceError("the density is negligible everywhere: the field is empty.")
    iou = np.where(possible, iou, -1.0)
    best = int(np.argmax(iou))
    good = (iou >= iou[best] - IOU_TOLERANCE) | ~possible
    below = np.flatnonzero(~good[:best])
    above = np.flatnonzero(~good[best:])
    first = int(below[-1]) + 1 if len(below) else 0
    last = best + int(above[0]) - 1 if len(above) else len(good) - 1
    # Thresholds from next_peaks[last] (most covered) to sorted_peaks[first] (least covered).
    middle = (sorted_peaks[first] + max(next_peaks[last], floor)) / 2
    chosen = int(np.searchsorted(-sorted_peaks, -middle, side="left")) - 1
    return IsoThreshold(density=float(np.exp(middle)), iou=float(max(iou[max(chosen, 0)], 0.0)))


def peak_log_density(
    grid: DensityGrid, views: FieldViews, *, stride: int = 1
) -> NDArray[np.float32]:
    """[V, H', W']: the highest trilinearly interpolated log-density along each pixel's ray.

    Every stride-th pixel in both directions, starting at stride // 2.
    """
    count, height, width = views.opacity.shape
    rows = np.arange(stride // 2, height, stride)
    columns = np.arange(stride // 2, width, stride)
    # Pixel centres on the image plane at distance 1: x right, y up, the camera looking along -Z.
    half = np.tan(np.deg2rad(views.fovy_deg) / 2)
    x = (2 * (columns + 0.5) / width - 1) * half * width / height
    y = (1 - 2 * (rows + 0.5) / height) * half
    camera = np.stack(
        [*np.broadcast_arrays(x[None, :], y[:, None]), np.full((len(rows), len(columns)), -1.0)], -1
    )
    camera /= np.linalg.norm(camera, axis=-1, keepdims=True)
    peaks = np.empty((count, len(rows), len(columns)), dtype=np.float32)
    log_density = np.ascontiguousarray(grid.log_density, dtype=np.float32)

    def march(view: int) -> None:
        pose = views.c2w[view].astype(np.float64)
        directions = np.ascontiguousarray(camera.reshape(-1, 3) @ pose[:3, :3].T)
        _march_peaks(
            log_density,
            np.ascontiguousarray(pose[:3, 3]),
            directions,
            np.float32(np.log(LOG_DENSITY_FLOOR)),
            peaks[view].reshape(-1),
        )

    with ThreadPoolExecutor(max_workers=min(count, os.cpu_count() or 1)) as pool:
        list(pool.map(march, range(count)))
    return peaks


@njit(nogil=True, cache=True)
def _march_peaks(grid, origin, directions, empty, peaks):
    resolution = grid.shape[0]
    to_index = 0.5 * (resolution - 1)
    step = 0.5 / to_index
    for ray in range(directions.shape[0]):
        near = 0.0
        far = 1e30
        for axis in range(3):
            d = directions[ray, axis]
            o = origin[axis]
            if abs(d) < 1e-12:
                if abs(o) > 1.0:
                    far = -1.0
            else:
                t0 = (-1.0 - o) / d
                t1 = (1.0 - o) / d
                near = max(near, min(t0, t1))
                far = min(far, max(t0, t1))
        peak = empty
        t = near + 0.5 * step
        while t < far:
            x = (origin[0] + t * directions[ray, 0] + 1.0) * to_index
            y = (origin[1] + t * directions[ray, 1] + 1.0) * to_index
            z = (origin[2] + t * directions[ray, 2] + 1.0) * to_index
            i = min(max(int(x), 0), resolution - 2)
            j = min(max(int(y), 0), resolution - 2)
            k = min(max(int(z), 0), resolution - 2)
            u = np.float32(x - i)
            v = np.float32(y - j)
            w = np.float32(z - k)
            c00 = grid[i, j, k] + w * (grid[i, j, k + 1] - grid[i, j, k])
            c01 = grid[i, j + 1, k] + w * (grid[i, j + 1, k + 1] - grid[i, j + 1, k])
            c10 = grid[i + 1, j, k] + w * (grid[i + 1, j, k + 1] - grid[i + 1, j, k])
            c11 = grid[i + 1, j + 1, k] + w * (grid[i + 1, j + 1, k + 1] - grid[i + 1, j + 1, k])
            c0 = c00 + v * (c01 - c00)
            c1 = c10 + v * (c11 - c10)
            value = c0 + u * (c1 - c0)
            if value > peak:
                peak = value
            t += step
        peaks[ray] = peak
