"""End to end: images of a ball in, the same ball out."""

import torch
from torch import Tensor

from nerf.background import random_background
from nerf.cameras import camera_rays, orbit_c2w
from nerf.field import FieldConfig, RadianceField
from nerf.hash_grid import HashGridConfig
from nerf.occupancy import OccupancyConfig, OccupancyGrid
from nerf.rendering import RenderConfig, render

RADIUS = 0.6
CENTRE = (0.15, -0.1, 0.0)
SIZE = 24
STEPS = 80


def picture(rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
    """Exact (albedo [..., 3], silhouette [...]) of a ball, red toward +X and blue toward -X."""
    offset = rays_o - torch.tensor(CENTRE)
    along = -(offset * rays_d).sum(dim=-1)
    inside = RADIUS**2 - (offset.square().sum(dim=-1) - along.square())
    entry = offset + (along - inside.clamp(min=0).sqrt())[..., None] * rays_d
    red = (entry[..., :1] > 0).float()
    colour = torch.cat([0.2 + 0.7 * red, torch.full_like(red, 0.2), 0.9 - 0.7 * red], dim=-1)
    return colour, (inside > 0).float()


def test_fits_a_coloured_ball_from_its_images():
    g = torch.Generator().manual_seed(0)
    field = RadianceField(
        FieldConfig(hash_grid=HashGridConfig(n_levels=6, log2_table_size=13)), generator=g
    )
    occupancy = OccupancyGrid(field.aabb, OccupancyConfig(resolution=16))
    mlp = [*field.hidden.parameters(), *field.head.parameters()]
    groups = [{"params": [field.encoding.table], "lr": 0.1}, {"params": mlp, "lr": 0.02}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15)
    config = RenderConfig(step_size=0.05)

    def at(azimuth_deg: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rays_o, rays_d = camera_rays(orbit_c2w(azimuth_deg, 20.0, 2.9), 40.0, SIZE, SIZE)
        return rays_o, rays_d, *picture(rays_o, rays_d)

    held_out = torch.arange(4) * 90.0 + 25
    losses = []
    for step in range(STEPS):
        occupancy.update(step, field.density, g)
        rays_o, rays_d, colour, mask = at(torch.rand(2, generator=g) * 360)
        background = random_background(2, g)[:, None, None]
        target = torch.where(mask[..., None] > 0, colour, background)
        out = render(field, occupancy, rays_o, rays_d, config, background=background, generator=g)
        loss = (out.rgb - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.15 * sum(losses[:5])

    rays_o, rays_d, colour, mask = at(held_out)
    with torch.no_grad():
        out = render(field, occupancy, rays_o, rays_d, config)
    seen = out.opacity > 0.5
    overlap = (seen & (mask > 0)).sum() / (seen | (mask > 0)).sum()
    assert overlap > 0.9
    # Well inside the silhouette the colours are right, side by side and on every side.
    inner = (mask > 0) & (out.opacity > 0.95)
    assert inner.sum() > 0.7 * mask.sum()
    assert (out.rgb - colour)[inner].abs().mean() < 0.1
    assert occupancy.occupied.float().mean() < 0.5
