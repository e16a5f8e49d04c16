import numpy as np
import pytest
import torch

from nerf.cameras import camera_rays, orbit_c2w
from nerf.mesh.iso_surface import EmptySurfaceError, extract_surface, sample_density
from nerf.mesh.iso_threshold import FieldViews, choose_iso_threshold, peak_log_density
from nerf.mesh.raster import mesh_silhouettes

FOVY_DEG = 40.0
C2W = orbit_c2w([45.0 * i for i in range(8)], [20.0, -10.0] * 4, 2.9)


def blob(points: torch.Tensor) -> torch.Tensor:
    """Soft and lopsided, so that each threshold has its own silhouettes."""
    big = (points - torch.tensor([0.1, -0.1, 0.0])).norm(dim=-1) - 0.45
    small = (points - torch.tensor([-0.2, 0.45, 0.2])).norm(dim=-1) - 0.2
    return 20 * torch.sigmoid(-14 * torch.minimum(big, small))


def sphere_mask(radius: float, size: int) -> np.ndarray:
    """Pixels whose central ray meets a sphere at the origin: exact silhouettes."""
    origins, directions = camera_rays(C2W, FOVY_DEG, size, size)
    along = (origins * directions).sum(-1)
    return ((origins.square().sum(-1) - along.square()) < radius**2).numpy()


def test_the_threshold_of_a_known_sphere_is_found():
    # density = exp(10 (0.5 - r)) equals exp(-1) on the sphere of radius 0.6.
    grid = sample_density(lambda p: torch.exp(10 * (0.5 - p.norm(dim=-1))), 96)
    mask = sphere_mask(0.6, 96)
    views = FieldViews(opacity=mask.astype(np.float32), c2w=C2W.numpy(), fovy_deg=FOVY_DEG)
    chosen = choose_iso_threshold(grid, views)
    radius = 0.5 - np.log(chosen.density) / 10
    assert radius == pytest.approx(0.6, abs=0.006)
    assert chosen.iou > 0.99


def test_no_other_threshold_is_much_better_by_the_mesh_itself():
    """The one-pass search against brute force: a real mesh rasterised at each candidate."""
    size = 64
    grid = sample_density(blob, 80)
    origins, directions = camera_rays(C2W, FOVY_DEG, size, size)
    steps = torch.linspace(1.8, 4.0, 160)
    points = origins[..., None, :] + directions[..., None, :] * steps[:, None]
    depth = blob(points.reshape(-1, 3)).reshape(points.shape[:-1]).sum(-1) * (steps[1] - steps[0])
    opacity = (1 - torch.exp(-depth)).numpy()
    views = FieldViews(opacity=opacity, c2w=C2W.numpy(), fovy_deg=FOVY_DEG)
    target = opacity > 0.5

    def mesh_iou(threshold: float) -> float:
        mask = mesh_silhouettes(
            *extract_surface(grid, threshold), C2W.numpy(), FOVY_DEG, size, size
        )
        return float((mask & target).sum() / (mask | target).sum())

    chosen = choose_iso_threshold(grid, views)
    brute_force = [mesh_iou(float(t)) for t in np.geomspace(0.1, 18, 40)]
    assert min(brute_force) < 0.8, "the candidates do not differ, so this proves nothing"
    assert mesh_iou(chosen.density) >= max(brute_force) - 0.01
    assert chosen.iou == pytest.approx(mesh_iou(chosen.density), abs=0.01)


def test_peaks_along_rays_are_the_meshes_silhouettes():
    grid = sample_density(blob, 96)
    empty = np.zeros((8, 60, 80), np.float32)
    views = FieldViews(opacity=empty, c2w=C2W.numpy(), fovy_deg=FOVY_DEG)
    peaks = peak_log_density(grid, views)
    for threshold in (0.5, 4.0, 12.0):
        mask = mesh_silhouettes(*extract_surface(grid, threshold), C2W.numpy(), FOVY_DEG, 60, 80)
        assert 0.02 < mask.mean() < 0.5
        assert ((peaks > np.log(threshold)) != mask).mean() < 2e-3


def test_the_middle_of_a_plateau_is_taken():
    # Hard edges: every threshold between floor and 100 fits equally well.
    grid = sample_density(lambda p: torch.where(p.norm(dim=-1) < 0.6, 100.0, 0.0), 96)
    mask = sphere_mask(0.6, 64)
    views = FieldViews(opacity=mask.astype(np.float32), c2w=C2W.numpy(), fovy_deg=FOVY_DEG)
    chosen = choose_iso_threshold(grid, views)
    assert 0.05 < chosen.density < 60
    assert chosen.iou > 0.95


def test_large_opacity_images_are_subsampled_to_the_same_answer():
    grid = sample_density(lambda p: torch.exp(10 * (0.5 - p.norm(dim=-1))), 64)
    radii = []
    for size in (64, 250):
        views = FieldViews(
            opacity=sphere_mask(0.6, size).astype(np.float32), c2w=C2W.numpy(), fovy_deg=FOVY_DEG
        )
        radii.append(0.5 - np.log(choose_iso_threshold(grid, views).density) / 10)
    assert radii[0] == pytest.approx(radii[1], abs=0.01)


def test_fog_and_emptiness_are_named():
    grid = sample_density(blob, 32)
    fog = FieldViews(opacity=np.full((8, 16, 16), 0.4), c2w=C2W.numpy(), fovy_deg=FOVY_DEG)
    with pytest.raises(EmptySurfaceError, match="transparent in every view"):
        choose_iso_threshold(grid, fog)
    opaque = FieldViews(opacity=np.ones((8, 16, 16)), c2w=C2W.numpy(), fovy_deg=FOVY_DEG)
    nothing = sample_density(lambda p: torch.zeros(len(p)), 32)
    with pytest.raises(EmptySurfaceError, match="negligible everywhere"):
        choose_iso_threshold(nothing, opaque)
    with pytest.raises(ValueError, match="c2w must be"):
        FieldViews(opacity=np.ones((7, 16, 16)), c2w=C2W.numpy(), fovy_deg=FOVY_DEG)
