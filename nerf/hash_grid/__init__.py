"""Multiresolution hash-grid encoding of points (Instant-NGP, arXiv 2201.05989)."""

from nerf.hash_grid.config import GridLevel, HashGridConfig
from nerf.hash_grid.module import Backend, Chosen, HashGrid, backend_fault, choose_backend

__all__ = [
    "Backend",
    "Chosen",
    "GridLevel",
    "HashGrid",
    "HashGridConfig",
    "backend_fault",
    "choose_backend",
]
