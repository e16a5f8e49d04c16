"""Marching tetrahedra: the zero level of values on a grid as triangles that carry gradients.

Each cube of the grid falls into six tetrahedra about its diagonal (Kuhn's subdivision), the same
in every cube, so that neighbours share whole faces and the surface has no cracks. Where an edge of
a tetrahedron joins a positive node to another one, a vertex lies at the linear interpolant's zero:

    v = (p_a s_b - p_b s_a) / (s_b - s_a)            (DMTet, arXiv 2111.04276, Section 3.1.2)

so that it moves with the values s and with the nodes p, as long as the signs stay.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch
from torch import Tensor

__all__ = ["march_tetrahedra", "node_positions"]


def node_positions(resolution: int, *, like: Tensor) -> Tensor:
    """Nodes of the grid over [-1, 1]^3, [R, R, R, 3], indexed [x, y, z] as DensityGrid's are."""
    axis = torch.linspace(-1.0, 1.0, resolution, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def march_tetrahedra(values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The surface between positive nodes (inside) and the others: (vertices [V, 3], faces [F, 3]).

    values: [R, R, R]; positions: [R, R, R, 3] of the nodes, not necessarily regular. Faces are
    counter-clockwise from outside. Closed wherever no positive node lies on the grid's border;
    every edge then has two faces. The vertices carry gradients to both arguments.
    """
    r = values.shape[0]
    if values.shape != (r, r, r) or positions.shape != (r, r, r, 3) or r < 2:
        raise ValueError(
            "values must be [R, R, R] with R at least 2 and positions [R, R, R, 3], got "
            f"{list(values.shape)} and {list(positions.shape)}."
        )
    flat, nodes = values.reshape(-1), positions.reshape(-1, 3)
    tetrahedra = _mixed_tetrahedra(values.detach() > 0)
    inside = (flat.detach() > 0)[tetrahedra]
    code = (inside * torch.tensor([1, 2, 4, 8], device=flat.device)).sum(1)
    pairs = torch.from_numpy(_TRIANGLES).to(flat.device)[code]  # [T, 2, 3, 2] local nodes
    real = pairs[:, :, 0, 0] >= 0
    ends = tetrahedra[:, None, None, :].expand(-1, 2, 3, -1).gather(3, pairs.clamp(min=0))[real]
    # An edge is named by its nodes, so that all tetrahedra about it share the vertex.
    key = ends.amin(-1) * len(flat) + ends.amax(-1)
    edges, faces = key.unique(return_inverse=True)
    a, b = edges // len(flat), edges % len(flat)
    s_a, s_b = flat[a], flat[b]
    share = (s_a / (s_a - s_b))[:, None]
    return torch.lerp(nodes[a], nodes[b], share), faces.reshape(-1, 3)


def _mixed_tetrahedra(inside: Tensor) -> Tensor:
    """Node numbers [T, 4] of the tetrahedra with nodes on both sides."""
    r = inside.shape[0]
    count = sum(
        inside[x : x + r - 1, y : y + r - 1, z : z + r - 1].to(torch.int8)
        for x in (0, 1)
        for y in (0, 1)
        for z in (0, 1)
    )
    assert isinstance(count, Tensor)
    cubes = ((count > 0) & (count < 8)).nonzero()
    stride = torch.tensor([r * r, r, 1], device=inside.device)
    offsets = torch.from_numpy(_CORNERS).to(inside.device) @ stride  # [6, 4]
    tetrahedra = ((cubes @ stride)[:, None, None] + offsets).reshape(-1, 4)
    signs = inside.reshape(-1)[tetrahedra].sum(1)
    return tetrahedra[(signs > 0) & (signs < 4)]


def _corners() -> np.ndarray:
    """[6, 4, 3]: the tetrahedra of the unit cube, each with a positive volume.

    Each walks from (0, 0, 0) to (1, 1, 1) along the axes in one of their orders.
    """
    found = []
    for order in permutations(range(3)):
        walk = np.zeros((4, 3), dtype=np.int64)
        for step, axis in enumerate(order):
            walk[step + 1 :, axis] = 1
        if np.linalg.det(walk[1:] - walk[0]) < 0:
            walk[[1, 2]] = walk[[2, 1]]
        found.append(walk)
    return np.stack(found)


def _triangles() -> np.ndarray:
    """[16, 2, 3, 2]: for each set of inside nodes up to two triangles, whose corners are edges.

    Node i of a tetrahedron counts 2^i; an edge is a pair of nodes; -1 where there is no triangle.
    """
    corners = _corners()[0].astype(np.float64)
    table = np.full((16, 2, 3, 2), -1, dtype=np.int64)
    for code in range(1, 15):
        inner = [i for i in range(4) if code >> i & 1]
        outer = [i for i in range(4) if i not in inner]
        loop = [(i, o) for i in inner for o in outer]
        if len(loop) == 4:  # around the quadrilateral, not across it
            loop = [loop[0], loop[1], loop[3], loop[2]]
        outward = corners[outer].mean(0) - corners[inner].mean(0)
        for number, third in enumerate(range(2, len(loop))):
            triangle = [loop[0], loop[third - 1], loop[third]]
            p, q, s = (corners[list(edge)].mean(0) for edge in triangle)
            if np.cross(q - p, s - p) @ outward < 0:
                triangle.reverse()
            table[code, number] = triangle
    return table


_CORNERS = _corners()
_TRIANGLES = _triangles()
