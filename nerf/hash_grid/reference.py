"""The hash grid in plain torch: the oracle of the faster backends, and the fallback everywhere.

Any floating dtype and device; torch's autograd differentiates it any number of times, so normals
(-d density / dx) can carry a loss.
"""

import torch
from torch import Tensor

from nerf.hash_grid.config import GridLevel, HashGridConfig

# The primes of the spatial hash, arXiv 2201.05989, equation 4 (the first one is 1).
HASH_PRIME_Y = 2654435761
HASH_PRIME_Z = 805459861
_UINT32 = 0xFFFFFFFF


def vertex_index(vertex: Tensor, level: GridLevel) -> Tensor:
    """Entry of a level that holds each grid vertex.

    vertex: [..., 3] int64 grid coordinates, taken modulo 2^32 as unsigned integers are.
    Returns [...] int64 in [0, level.n_entries).

    Where all vertices have an entry of their own: x + y res + z res^2. Elsewhere the spatial hash
    x XOR (y pi_2) XOR (z pi_3) in unsigned 32-bit arithmetic (arXiv 2201.05989, equation 4).
    Either is taken modulo the number of entries. A point at the upper face of the cube reaches
    one vertex beyond the last; in a dense level it shares the entry that this formula gives.
    """
    x, y, z = (vertex & _UINT32).unbind(-1)
    if level.hashed:
        # The products fit no int64 when a coordinate is near 2^32; their low 32 bits, which
        # alone matter, survive the wrap-around of two's complement.
        index = (x ^ (y * HASH_PRIME_Y) ^ (z * HASH_PRIME_Z)) & _UINT32
    else:
        index = (x + y * level.resolution + z * level.resolution**2) & _UINT32
    return index % level.n_entries


def encode(points: Tensor, table: Tensor, config: HashGridConfig) -> Tensor:
    """Multiresolution encoding of points: trilinear interpolation in every level, concatenated.

    points: [N, 3], meant for [0, 1]; beyond it the vertices wrap around.
    table: [config.n_parameters], level after level, the features of an entry side by side.
    Returns [N, n_levels * n_features] in the table's dtype. arXiv 2201.05989, section 3.
    """
    entries = table.view(-1, config.n_features)
    corners = torch.tensor(
        [[corner >> axis & 1 for axis in range(3)] for corner in range(8)], device=points.device
    )
    upper = corners.bool()
    encoded: list[Tensor] = []
    for level in config.levels:
        # The half cell staggers the levels: their cell faces do not coincide at the origin.
        position = level.scale * points + 0.5
        cell = position.detach().floor()
        fraction = (position - cell).unsqueeze(1)
        # Weight of a corner: the product over the axes of w (upper side) or 1 - w (lower side).
        weights = torch.where(upper, fraction, 1 - fraction)
        weight = weights[..., 0] * weights[..., 1] * weights[..., 2]
        index = vertex_index(cell.long().unsqueeze(1) + corners, level) + level.offset
        encoded.append((weight.unsqueeze(-1) * entries[index]).sum(dim=1))
    return torch.cat(encoded, dim=-1).to(table.dtype)
