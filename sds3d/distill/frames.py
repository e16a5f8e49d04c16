"""Small pictures of samples, drawn in milliseconds, on no background: for light pages and dark."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from core.mixture import GaussianMixture

from .digits import SIDE
from .grounds import NamedGround

PIXELS = 360
"""Width of a picture."""
FINE = 2
"""Pictures are drawn so many times as large, and then made smaller: PIL draws no soft edges."""
REACH = 2.6
"""What is shown of the plane and the line: coordinates of at most this size."""
PATHS = 120
"""Trajectories that are drawn; more cover each other."""

_SAMPLE = (13, 148, 136, 255)
_PATH = (217, 119, 6, 110)
_DENSITY = (120, 135, 155)


class Frames:
    """Draws samples on `ground`, and how they came there where `has_paths` says so."""

    def __init__(self, ground: NamedGround, *, has_paths: bool) -> None:
        self._ground = ground
        self._has_paths = has_paths
        self._behind: Image.Image | None = None
        if ground.mixture is not None:
            self._behind = _density(ground.mixture)

    def draw(self, states: list[Tensor]) -> bytes:
        """A PNG, PIXELS wide, of the last of `states` [B, ...]; the others are the way there."""
        # An untrained student may be anywhere, also nowhere.
        seen = [state.nan_to_num(0.0, 30.0, -30.0).clamp(-30, 30) for state in states]
        if self._ground.name == "digits":
            image = _digits(seen[-1])
        elif self._ground.name == "clouds":
            image = _clouds(seen[-1])
        elif self._ground.name == "mixture":
            image = self._plane(seen)
        else:
            image = self._line(seen)
        packed = io.BytesIO()
        image.save(packed, "PNG", compress_level=2)
        return packed.getvalue()

    def _plane(self, states: list[Tensor]) -> Image.Image:
        assert self._behind is not None
        image = self._behind.copy()
        pen = ImageDraw.Draw(image)
        if self._has_paths:
            paths = _pixel(torch.stack(states)[:, :PATHS]).transpose(0, 1).tolist()
            for path in paths:
                pen.line([(x, y) for x, y in path], fill=_PATH, width=FINE)
        _dots(pen, _pixel(states[-1]), 1.3, _SAMPLE)
        return image.reduce(FINE)

    def _line(self, states: list[Tensor]) -> Image.Image:
        """Paths from left to right, then the data's density and the samples' histogram."""
        assert self._behind is not None
        image = self._behind.copy()
        pen = ImageDraw.Draw(image)
        side, middle = PIXELS * FINE, _middle()
        if self._has_paths:
            height = _pixel(torch.stack(states)[:, :PATHS, 0], flip=True).tolist()
            places = np.linspace(FINE, middle - 4 * FINE, len(states)).tolist()
            for path in zip(*height, strict=True):
                pen.line(list(zip(places, path, strict=True)), fill=_PATH, width=FINE)
        ends = states[-1][:, 0]
        spot = torch.full_like(ends, middle - 4 * FINE)
        _dots(pen, torch.stack([spot, _pixel(ends, flip=True)], 1), 1.3, _SAMPLE)
        bins = 52
        counts = torch.histc(ends, bins, -REACH, REACH) / len(ends) * bins / (2 * REACH)
        width = side - middle - 2 * FINE
        outline = []
        for k, share in enumerate(counts.tolist()):
            x = middle + width * min(1.0, share)
            outline += [(x, side * (1 - k / bins)), (x, side * (1 - (k + 1) / bins))]
        pen.line(outline, fill=_SAMPLE, width=2 * FINE)
        return image.reduce(FINE)


def _middle() -> int:
    """Where the paths of a line end and the densities begin."""
    return int(0.68 * PIXELS * FINE)


def _pixel(x: Tensor, *, flip: bool = False) -> Tensor:
    """Coordinates [..., 2] of the plane, or of the line, as pixels; +y and +x go up."""
    place = (x + REACH) / (2 * REACH) * PIXELS * FINE
    if flip:
        return PIXELS * FINE - place
    return torch.stack([place[..., 0], PIXELS * FINE - place[..., 1]], -1)


def _dots(pen: ImageDraw.ImageDraw, places: Tensor, radius: float, color: tuple[int, ...]) -> None:
    r = radius * FINE
    for x, y in places.tolist():
        pen.ellipse((x - r, y - r, x + r, y + r), fill=color)


def _density(mixture: GaussianMixture) -> Image.Image:
    """The data's density as a veil over the plane, or as a hill beside the line."""
    side = PIXELS * FINE
    ticks = torch.linspace(-REACH, REACH, side // 4)
    plane = mixture.means.shape[1] == 2
    points = torch.cartesian_prod(-ticks, ticks).flip(1) if plane else ticks[:, None]
    ones = torch.ones(len(points))
    density = mixture.noised(ones, torch.zeros_like(ones)).log_density(points).exp()
    if plane:
        veil = (density / density.max()).sqrt().view(len(ticks), -1).numpy()
        alpha = Image.fromarray((150 * veil).astype(np.uint8)).resize((side, side))
        image = Image.new("RGBA", (side, side), (*_DENSITY, 0))
        image.putalpha(alpha)
        return image
    image = Image.new("RGBA", (side, side), (*_DENSITY, 0))
    middle, width = _middle(), side - _middle() - 2 * FINE
    hill = [
        (middle + width * min(1.0, height), side * (1 - (x + REACH) / (2 * REACH)))
        for x, height in zip(ticks.tolist(), density.tolist(), strict=True)
    ]
    ImageDraw.Draw(image).polygon([(middle, side), *hill, (middle, 0)], fill=(*_DENSITY, 130))
    return image


def _digits(images: Tensor, columns: int = 10, zoom: int = 4) -> Image.Image:
    """[B, 64] as rows of `columns`, with gaps that show what is behind."""
    rows = max(1, len(images) // columns)
    pixels = ((images[: rows * columns].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    cells = pixels.reshape(rows, columns, SIDE, SIDE).numpy().repeat(zoom, 2).repeat(zoom, 3)
    gray = np.zeros((rows, columns, SIDE * zoom + zoom, SIDE * zoom + zoom, 4), np.uint8)
    gray[:, :, : SIDE * zoom, : SIDE * zoom, :3] = cells[..., None]
    gray[:, :, : SIDE * zoom, : SIDE * zoom, 3] = 255
    height, width = rows * gray.shape[2], columns * gray.shape[3]
    return Image.fromarray(gray.transpose(0, 2, 1, 3, 4).reshape(height, width, 4))


def _clouds(clouds: Tensor, columns: int = 3, rows: int = 2) -> Image.Image:
    """[B, N, 3] seen a little from the right and from above, nearer points larger."""
    side = PIXELS * FINE // columns
    image = Image.new("RGBA", (columns * side, rows * side), (*_DENSITY, 0))
    pen = ImageDraw.Draw(image)
    azimuth, elevation = math.radians(35), math.radians(20)
    for k, cloud in enumerate(clouds[: columns * rows]):
        x, y, z = cloud.unbind(1)
        right = x * math.cos(azimuth) - z * math.sin(azimuth)
        depth = x * math.sin(azimuth) + z * math.cos(azimuth)
        up = y * math.cos(elevation) - depth * math.sin(elevation)
        near = y * math.sin(elevation) + depth * math.cos(elevation)
        row, column = divmod(k, columns)
        for u, v, w in zip(right.tolist(), up.tolist(), near.tolist(), strict=True):
            if abs(u) < REACH and abs(v) < REACH:
                place = torch.tensor([[u, -v]]) * side / (2 * REACH) + side / 2
                place += torch.tensor([[column * side, row * side]])
                _dots(pen, place, 1.6 + 0.3 * max(-2.0, min(2.0, w)), _SAMPLE)
    return image.reduce(FINE)
