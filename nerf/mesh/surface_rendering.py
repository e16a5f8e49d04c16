"""Pictures of a triangle mesh that carry gradients to its vertices and to its colours.

Which face a pixel's centre sees is found by the z-buffer of `nerf.mesh.raster` and is a constant of
the step; where on that face the pixel's ray meets it is exact and differentiable, and so are the
normal and whatever colour is found there. What a face covers changes at silhouettes alone, where
neighbouring pixels are blended by the share that the edge between them leaves to each, as in the
analytic antialiasing of nvdiffrast (arXiv 2011.03277): this is what gives a silhouette its
gradient. Here it goes edge by edge, so that faces smaller than a pixel are no obstacle.

All in torch but the visibility, so it needs no compiler; on CUDA the visibility still comes from
the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nerf.cameras import camera_rays, project
from nerf.mesh.raster import NEAR, visible_faces

__all__ = [
    "SurfaceImages",
    "opposite_faces",
    "render_surface",
    "surface_roughness",
    "vertex_normals",
]

SAME_DEPTH = 1e-3
"""Relative difference of depths up to which an edge counts as lying on what a pixel sees."""

SurfaceShader = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Points [S, 3], unit outward normals [S, 3] and view indices [S] to colours [S, 3]."""


@dataclass(frozen=True, eq=False)
class SurfaceImages:
    """images: [V, 3, H, W]; coverage: [V, H, W] in [0, 1]; both with gradients.

    pixels: how many pixels were shaded.
    """

    images: Tensor
    coverage: Tensor
    pixels: int


def render_surface(
    vertices: Tensor,
    faces: Tensor,
    shader: SurfaceShader,
    c2w: Tensor,
    fovy_deg: float,
    side: int,
    *,
    background: Tensor,
) -> SurfaceImages:
    """The mesh vertices [N, 3], faces [F, 3] from cameras c2w [V, 4, 4], side pixels square.

    background: colours that broadcast against [V, H, W, 3]. Back faces are not seen.
    """
    face_index, nearness = _visible(vertices, faces, c2w, fovy_deg, side)
    views, rows, columns = (face_index >= 0).nonzero(as_tuple=True)
    seen = faces[face_index[views, rows, columns]]
    rays_o, rays_d = camera_rays(c2w, fovy_deg, side, side)
    weights = _weights(vertices[seen], rays_o[views, rows, columns], rays_d[views, rows, columns])
    points = (weights[..., None] * vertices[seen]).sum(1)
    normals = (weights[..., None] * vertex_normals(vertices, faces)[seen]).sum(1)
    colors = shader(points, functional.normalize(normals, dim=-1), views)
    empty = torch.cat(
        [
            torch.broadcast_to(background, (*face_index.shape, 3)).to(vertices.dtype),
            torch.zeros_like(nearness)[..., None],
        ],
        dim=-1,
    )
    matter = torch.cat([colors, torch.ones_like(colors[:, :1])], dim=-1)
    picture = empty.index_put((views, rows, columns), matter)
    screen, depth = project(vertices, c2w, fovy_deg, side, side)
    picture = _antialias(picture, face_index, nearness, screen, depth, faces)
    return SurfaceImages(
        images=picture[..., :3].movedim(-1, 1), coverage=picture[..., 3], pixels=len(views)
    )


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """[N, 3], not unit: the sum of the faces' cross products around each vertex."""
    a, b, c = vertices[faces].unbind(1)
    cross = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total = total.index_add(0, faces[:, corner], cross)
    return total


def opposite_faces(faces: Tensor) -> Tensor:
    """[F, 3]: the face across the edge from corner k to corner k + 1; -1 where that is not one."""
    ends = torch.stack([faces, faces.roll(-1, dims=1)], dim=-1)
    key = ends.amin(-1) * (int(faces.max()) + 1 if len(faces) else 1) + ends.amax(-1)
    _, edge, count = key.unique(return_inverse=True, return_counts=True)
    number = torch.arange(len(faces), device=faces.device)[:, None].expand(-1, 3)
    total = torch.zeros_like(count).index_add(0, edge.reshape(-1), number.reshape(-1))
    return torch.where(count[edge] == 2, total[edge] - number, -1)


def surface_roughness(vertices: Tensor, faces: Tensor) -> Tensor:
    """Mean over the edges of 1 - n . m, the normals of the faces at both sides; 0 for a plane.

    Magic3D smooths its mesh by the angle between neighbouring faces (arXiv 2211.10440, Section
    4.2). Zero, with a gradient of zero, for a mesh without edges.
    """
    across = opposite_faces(faces)
    first, corner = (across > torch.arange(len(faces), device=faces.device)[:, None]).nonzero(
        as_tuple=True
    )
    if len(first) == 0:
        return 0.0 * vertices.sum()
    a, b, c = vertices[faces].unbind(1)
    normals = functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1, eps=1e-20)
    return (1 - (normals[first] * normals[across[first, corner]]).sum(-1)).mean()


def _visible(
    vertices: Tensor, faces: Tensor, c2w: Tensor, fovy_deg: float, side: int
) -> tuple[Tensor, Tensor]:
    """The face at each pixel [V, H, W], -1 for none, and its 1 / depth, on the vertices' device."""
    face_index, nearness = visible_faces(
        vertices.detach().cpu().numpy(),
        faces.cpu().numpy().astype(np.int32),
        c2w.cpu().numpy(),
        fovy_deg,
        side,
        side,
    )
    found = torch.from_numpy(face_index).to(vertices.device, torch.long)
    return found, torch.from_numpy(nearness).to(vertices)


def _weights(corners: Tensor, rays_o: Tensor, rays_d: Tensor) -> Tensor:
    """Barycentric coordinates [S, 3] of where rays meet the planes of their faces [S, 3, 3].

    With corners a, b, c relative to the ray's origin, d = u a + v b + w c up to a factor gives
    u : v : w = (b x c) . d : (c x a) . d : (a x b) . d, by Cramer's rule.
    """
    a, b, c = (corners - rays_o[:, None]).unbind(1)
    volumes = [torch.linalg.cross(p, q) for p, q in ((b, c), (c, a), (a, b))]
    weights = torch.stack([(volume * rays_d).sum(-1) for volume in volumes], dim=-1)
    return weights / weights.sum(-1, keepdim=True)


def _antialias(
    picture: Tensor,
    face_index: Tensor,
    nearness: Tensor,
    screen: Tensor,
    depth: Tensor,
    faces: Tensor,
) -> Tensor:
    """`picture` [V, H, W, C] with the pixels beside silhouettes blended.

    A silhouette passes between the centres of two neighbours at the share `reach` of the way from
    the inner one. Beyond the middle it covers reach - 1/2 of the outer pixel, before it it leaves
    1/2 - reach of the inner one bare. Rows take the steep edges and columns the flat ones, so that
    what an edge covers counts once.
    """
    flat, result = picture.reshape(-1, picture.shape[-1]), picture.reshape(-1, picture.shape[-1])
    edges = _silhouette_edges(screen, depth, faces)
    for axis in (0, 1):  # neighbours along the screen's x, then along its y
        inner, outer, reach = _crossings(edges, axis, face_index, nearness)
        share = (reach - 0.5)[:, None]
        difference = flat[inner] - flat[outer]
        result = result.index_add(0, outer, share.clamp(min=0) * difference)
        result = result.index_add(0, inner, share.clamp(max=0) * difference)
    return result.view(picture.shape)


@dataclass(frozen=True, eq=False)
class _Edges:
    """E edges between a face that is seen and one that is not: view [E], and both ends' position
    in pixels [E, 2, 2] and 1 / depth [E, 2]. The matter lies to the right of the way from the
    first end to the second on a screen whose rows grow downward, seen as it is drawn."""

    view: Tensor
    ends: Tensor
    nearness: Tensor


def _silhouette_edges(screen: Tensor, depth: Tensor, faces: Tensor) -> _Edges:
    p, q, r = screen.detach()[:, faces].unbind(2)  # [V, F, 2] each
    # Rows grow downward: a front face has a positive value of this.
    front = (r - p)[..., 0] * (q - p)[..., 1] > (q - p)[..., 0] * (r - p)[..., 1]
    front = front & (depth[:, faces] > NEAR).all(-1)
    across = opposite_faces(faces)
    outline = front[:, :, None] & ~(front[:, across.clamp(min=0)] & (across >= 0))
    view, face, corner = outline.nonzero(as_tuple=True)
    number = torch.stack([faces[face, corner], faces[face, (corner + 1) % 3]], dim=-1)
    ends = screen[view[:, None], number]
    return _Edges(view, ends, 1 / depth.detach()[view[:, None], number])


def _crossings(
    edges: _Edges, axis: int, face_index: Tensor, nearness: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of the inner and the outer pixel [P] and the silhouette's reach [P] between them.

    Of several edges between the same two centres the outermost counts, and none that is hidden.
    """
    side, other = face_index.shape[-1], 1 - axis
    along = (edges.ends[:, 1] - edges.ends[:, 0]).detach()
    # An edge at 45 degrees is the rows' alone.
    mine = along[:, other].abs() >= along[:, axis].abs()
    if axis == 1:
        mine = along[:, other].abs() > along[:, axis].abs()
    low, high = edges.ends.detach()[..., other].aminmax(dim=1)
    first = (low - 0.5).ceil().clamp(0, side).long()
    last = (high - 0.5).ceil().clamp(0, side).long()
    count = torch.where(mine, last - first, 0)
    edge = torch.arange(len(count), device=count.device).repeat_interleave(count)
    line = first[edge] + torch.arange(len(edge), device=count.device)
    line = line - (count.cumsum(0) - count)[edge]
    start, end = edges.ends[edge].unbind(1)
    part = (line + 0.5 - start[:, other]) / (end - start)[:, other]
    at = start[:, axis] + part * (end - start)[:, axis]
    near = edges.nearness[edge, 0].lerp(edges.nearness[edge, 1], part.detach())
    below = (at.detach() - 0.5).floor().long()
    upward = (along[edge, other] > 0) == (axis == 0)  # whether matter lies at the larger coordinate
    inner, outer = torch.where(upward, below + 1, below), torch.where(upward, below, below + 1)
    reach = torch.where(upward, inner + 0.5 - at, at - inner - 0.5)
    inside = (below >= 0) & (below + 1 < side)
    base = edges.view[edge] * side * side

    def number(place: Tensor) -> Tensor:
        place = place.clamp(0, side - 1)
        column, row = (place, line) if axis == 0 else (line, place)
        return base + row * side + column

    inner, outer = number(inner), number(outer)
    seen, depth = face_index.view(-1), nearness.view(-1)
    shown = inside & (seen[inner] >= 0) & (seen[inner] != seen[outer])
    shown = shown & (depth[inner] >= near * (1 - SAME_DEPTH))
    shown = shown & (depth[outer] < near * (1 - SAME_DEPTH))
    inner, outer, reach = inner[shown], outer[shown], reach[shown]
    pair = 2 * inner + (outer > inner)
    farthest = reach.new_full((2 * face_index.numel(),), -1.0)
    farthest = farthest.scatter_reduce(0, pair, reach.detach(), "amax")
    best = reach.detach() == farthest[pair]
    return inner[best], outer[best], reach[best]
