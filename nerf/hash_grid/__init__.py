"""Multiresolution hash-grid encoding of points (Instant-NGP, arXiv 2201.05989)."""

from nerf.hash_grid.config import GridLevel, HashGridConfig
from nerf.hash_grid.module import Backend, HashGrid, choose_backend

__all__ = ["Backend", "GridLevel", "HashGrid", "HashGridConfig", "choose_backend"]
