"""The loops of the hash grid, compiled by Numba for the CPU.

Every kernel takes a range of points and a range of levels, so that threads can share the work
either way, and holds no lock of Python's. Indices are recomputed wherever they are needed: that is
cheaper than the 64 bytes per point and level it would take to remember them.

Integer types are explicit. Vertices and entries are unsigned 32-bit, as the hash demands; every
index into an array is unsigned 64-bit, because for a signed one Numba tests at each access whether
it is negative (that alone costs a quarter of the time), and a mix of the two makes floats.

One kernel has two forms. The plain form interpolates with the trilinear weights; the tangent form
with the derivative of these weights along a direction per point. Both are linear in the table:

    interpolate:  out[i, l, f]      = sum_c weight_c(i, l) table[index_c(i, l), f]
    scatter:      table[index_c, f] += weight_c(i, l) grad[i, l, f]        (its transpose)
    point_grad:   d/dpoint of sum_{l, f} grad[i, l, f] out[i, l, f]

No fast-math: results are the same bits on every run and agree with the torch reference's cells.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numba
import numpy as np

from nerf.hash_grid.reference import HASH_PRIME_Y, HASH_PRIME_Z

_PRIME_Y = numba.uint32(HASH_PRIME_Y)
_PRIME_Z = numba.uint32(HASH_PRIME_Z)
_ONE = numba.uint32(1)

# Points whose rows of the output stay in the cache while all levels are visited.
BLOCK = 4096

_inline = numba.njit(nogil=True, error_model="numpy", forceinline=True)


def _keep(loop: Callable[..., None]) -> Callable[..., None]:
    """Compile a loop, and keep the result on disk wherever there is a place to write."""
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(loop)
    except RuntimeError:  # neither beside this file nor in the user's cache folder
        return numba.njit(nogil=True, error_model="numpy")(loop)


@_inline
def _locate(points, i, scale):
    """Cell of point i in a level, and the fractions within it."""
    half = points.dtype.type(0.5)
    x = scale * points[i, 0] + half
    y = scale * points[i, 1] + half
    z = scale * points[i, 2] + half
    cell_x, cell_y, cell_z = np.floor(x), np.floor(y), np.floor(z)
    return (
        numba.uint32(numba.int32(cell_x)),
        numba.uint32(numba.int32(cell_y)),
        numba.uint32(numba.int32(cell_z)),
        x - cell_x,
        y - cell_y,
        z - cell_z,
    )


@_inline
def _hashed_corners(x, y, z, n_entries):
    """Entries of a cell's corners by the spatial hash; n_entries is a power of two."""
    mask = n_entries - _ONE
    x1 = x + _ONE
    y0 = y * _PRIME_Y
    y1 = y0 + _PRIME_Y
    z0 = z * _PRIME_Z
    z1 = z0 + _PRIME_Z
    y0z0, y1z0, y0z1, y1z1 = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1
    return (
        (x ^ y0z0) & mask,
        (x1 ^ y0z0) & mask,
        (x ^ y1z0) & mask,
        (x1 ^ y1z0) & mask,
        (x ^ y0z1) & mask,
        (x1 ^ y0z1) & mask,
        (x ^ y1z1) & mask,
        (x1 ^ y1z1) & mask,
    )


@_inline
def _dense_corners(x, y, z, resolution, n_entries):
    """Entries of a cell's corners where every vertex has its own."""
    plane = resolution * resolution
    i0 = x + y * resolution + z * plane
    i1 = i0 + _ONE
    i2 = i0 + resolution
    i3 = i2 + _ONE
    i4 = i0 + plane
    i5 = i4 + _ONE
    i6 = i4 + resolution
    i7 = i6 + _ONE
    if i7 >= n_entries or i7 < i0:  # beyond the last vertex, or wrapped around 2^32
        i0, i1, i2, i3 = i0 % n_entries, i1 % n_entries, i2 % n_entries, i3 % n_entries
        i4, i5, i6, i7 = i4 % n_entries, i5 % n_entries, i6 % n_entries, i7 % n_entries
    return i0, i1, i2, i3, i4, i5, i6, i7


@_inline
def _level_shape(shapes, level):
    """Resolution, entries, first entry, and whether hashed, in the types the loops need."""
    return (
        numba.uint32(shapes[level, 0]),
        numba.uint32(shapes[level, 1]),
        numba.uint64(shapes[level, 2]),
        shapes[level, 3] != 0,
    )


@_inline
def _weights(u, v, w):
    """Trilinear weights of the corners at fractions (u, v, w)."""
    one = type(u)(1)
    p, q, r = one - u, one - v, one - w
    pq, uq, pv, uv = p * q, u * q, p * v, u * v
    return pq * r, uq * r, pv * r, uv * r, pq * w, uq * w, pv * w, uv * w


@_inline
def _weight_tangents(u, v, w, du, dv, dw):
    """Derivatives of the trilinear weights when the fractions move by (du, dv, dw)."""
    one = type(u)(1)
    p, q, r = one - u, one - v, one - w
    pq, uq, pv, uv = p * q, u * q, p * v, u * v
    d_pq, d_uq = -du * q - p * dv, du * q - u * dv
    d_pv, d_uv = p * dv - du * v, du * v + u * dv
    return (
        d_pq * r - pq * dw,
        d_uq * r - uq * dw,
        d_pv * r - pv * dw,
        d_uv * r - uv * dw,
        d_pq * w + pq * dw,
        d_uq * w + uq * dw,
        d_pv * w + pv * dw,
        d_uv * w + uv * dw,
    )


@_inline
def _corners(x, y, z, resolution, n_entries, offset, hashed, width):
    """Position in the flat table of the first feature of each corner of a cell."""
    if hashed:
        i0, i1, i2, i3, i4, i5, i6, i7 = _hashed_corners(x, y, z, n_entries)
    else:
        i0, i1, i2, i3, i4, i5, i6, i7 = _dense_corners(x, y, z, resolution, n_entries)
    return (
        (offset + i0) * width,
        (offset + i1) * width,
        (offset + i2) * width,
        (offset + i3) * width,
        (offset + i4) * width,
        (offset + i5) * width,
        (offset + i6) * width,
        (offset + i7) * width,
    )


@_inline
def _dot(table, entry, grad, i, column, width):
    """Product of an entry's features with a point's gradient for the level."""
    total = table[entry] * grad[i, column]
    for f in range(numba.uint64(1), width):
        total += table[entry + f] * grad[i, column + f]
    return total


class Kernels(NamedTuple):
    """Compiled loops for one number of features and one form (plain or tangent).

    All take (points [N,3], directions [N,3], scales [L], shapes [L,4] int64, ...): a row of shapes
    is (resolution, n_entries, offset, hashed). The plain forms ignore `directions`.
    """

    interpolate: Callable[..., None]
    scatter: Callable[..., None]
    point_grad: Callable[..., None]


@cache
def kernels(n_features: int, tangent: bool) -> Kernels:
    """The loops for tables of n_features; compiled at first call per dtype, then kept on disk.

    The closures hold numbers alone: Numba keys what it keeps by the pickle of the closure, and a
    compiled function in there would differ in each process and never be found again.
    """

    @_keep
    def interpolate(points, directions, scales, shapes, table, out, start, stop):
        """Rows start to stop of out [N, L * F]; writes all of them."""
        width = numba.uint64(n_features)
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            for level in range(shapes.shape[0]):
                scale = scales[level]
                resolution, n_entries, offset, hashed = _level_shape(shapes, level)
                column = numba.uint64(level) * width
                for i in range(numba.uint64(first), numba.uint64(last)):
                    x, y, z, u, v, w = _locate(points, i, scale)
                    if tangent:
                        w0, w1, w2, w3, w4, w5, w6, w7 = _weight_tangents(
                            u, v, w,
                            scale * directions[i, 0],
                            scale * directions[i, 1],
                            scale * directions[i, 2],
                        )  # fmt: skip
                    else:
                        w0, w1, w2, w3, w4, w5, w6, w7 = _weights(u, v, w)
                    i0, i1, i2, i3, i4, i5, i6, i7 = _corners(
                        x, y, z, resolution, n_entries, offset, hashed, width
                    )
                    for f in range(width):
                        out[i, column + f] = (
                            (w0 * table[i0 + f] + w1 * table[i1 + f])
                            + (w2 * table[i2 + f] + w3 * table[i3 + f])
                        ) + (
                            (w4 * table[i4 + f] + w5 * table[i5 + f])
                            + (w6 * table[i6 + f] + w7 * table[i7 + f])
                        )

    @_keep
    def scatter(points, directions, scales, shapes, grad, grad_table, level):
        """Write one level's part of grad_table: the sum of what grad [N, L * F] sends there."""
        width = numba.uint64(n_features)
        scale = scales[level]
        resolution, n_entries, offset, hashed = _level_shape(shapes, level)
        column = numba.uint64(level) * width
        grad_table[offset * width : (offset + numba.uint64(n_entries)) * width] = 0
        for i in range(numba.uint64(points.shape[0])):
            x, y, z, u, v, w = _locate(points, i, scale)
            if tangent:
                w0, w1, w2, w3, w4, w5, w6, w7 = _weight_tangents(
                    u, v, w,
                    scale * directions[i, 0],
                    scale * directions[i, 1],
                    scale * directions[i, 2],
                )  # fmt: skip
            else:
                w0, w1, w2, w3, w4, w5, w6, w7 = _weights(u, v, w)
            i0, i1, i2, i3, i4, i5, i6, i7 = _corners(
                x, y, z, resolution, n_entries, offset, hashed, width
            )
            for f in range(width):
                g = grad[i, column + f]
                grad_table[i0 + f] += w0 * g
                grad_table[i1 + f] += w1 * g
                grad_table[i2 + f] += w2 * g
                grad_table[i3 + f] += w3 * g
                grad_table[i4 + f] += w4 * g
                grad_table[i5 + f] += w5 * g
                grad_table[i6 + f] += w6 * g
                grad_table[i7 + f] += w7 * g

    @_keep
    def point_grad(points, directions, scales, shapes, table, grad, grad_points, start, stop):
        """Rows start to stop of grad_points [N, 3]; writes all of them.

        With d_c the product of a corner's features with grad, the level's value is trilinear in
        the fractions: its gradient takes differences of d_c along an axis, its Hessian (tangent
        form, times the direction) mixed differences; the Hessian's diagonal is zero.
        """
        width = numba.uint64(n_features)
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            grad_points[first:last] = 0
            for level in range(shapes.shape[0]):
                scale = scales[level]
                resolution, n_entries, offset, hashed = _level_shape(shapes, level)
                column = numba.uint64(level) * width
                one = points.dtype.type(1)
                for i in range(numba.uint64(first), numba.uint64(last)):
                    x, y, z, u, v, w = _locate(points, i, scale)
                    i0, i1, i2, i3, i4, i5, i6, i7 = _corners(
                        x, y, z, resolution, n_entries, offset, hashed, width
                    )
                    d0 = _dot(table, i0, grad, i, column, width)
                    d1 = _dot(table, i1, grad, i, column, width)
                    d2 = _dot(table, i2, grad, i, column, width)
                    d3 = _dot(table, i3, grad, i, column, width)
                    d4 = _dot(table, i4, grad, i, column, width)
                    d5 = _dot(table, i5, grad, i, column, width)
                    d6 = _dot(table, i6, grad, i, column, width)
                    d7 = _dot(table, i7, grad, i, column, width)
                    p, q, r = one - u, one - v, one - w
                    if tangent:
                        xy = (d3 - d2 - d1 + d0) * r + (d7 - d6 - d5 + d4) * w
                        xz = (d5 - d4 - d1 + d0) * q + (d7 - d6 - d3 + d2) * v
                        yz = (d6 - d4 - d2 + d0) * p + (d7 - d5 - d3 + d1) * u
                        dx, dy, dz = directions[i, 0], directions[i, 1], directions[i, 2]
                        square = scale * scale
                        grad_points[i, 0] += square * (xy * dy + xz * dz)
                        grad_points[i, 1] += square * (xy * dx + yz * dz)
                        grad_points[i, 2] += square * (xz * dx + yz * dy)
                    else:
                        along_x = ((d1 - d0) * q + (d3 - d2) * v) * r + (
                            (d5 - d4) * q + (d7 - d6) * v
                        ) * w
                        along_y = ((d2 - d0) * p + (d3 - d1) * u) * r + (
                            (d6 - d4) * p + (d7 - d5) * u
                        ) * w
                        along_z = ((d4 - d0) * p + (d5 - d1) * u) * q + (
                            (d6 - d2) * p + (d7 - d3) * u
                        ) * v
                        grad_points[i, 0] += scale * along_x
                        grad_points[i, 1] += scale * along_y
                        grad_points[i, 2] += scale * along_z

    return Kernels(interpolate, scatter, point_grad)
