"""Lambertian shading against values worked out by hand."""

import pytest
import torch

from nerf.shading import Lambertian, lambertian

ALBEDO = torch.tensor([[0.5, 1.0, 0.0]])
NORMAL = torch.tensor([[0.0, 1.0, 0.0]])
POSITION = torch.tensor([[0.0, 1.0, 0.0]])


@pytest.mark.parametrize(
    ("light", "factor"),
    [
        ((0.0, 3.0, 0.0), 0.3 + 0.6),  # from straight above
        ((2.0, 3.0, 0.0), 0.3 + 0.6 * 0.5**0.5),  # 45 degrees
        ((2.0, 1.0, 0.0), 0.3),  # grazing
        ((0.0, -3.0, 0.0), 0.3),  # from behind: ambient alone
    ],
)
def test_shades_by_the_cosine_to_the_light(light, factor):
    seen = lambertian(ALBEDO, NORMAL, POSITION, torch.tensor(light), ambient=0.3, diffuse=0.6)
    torch.testing.assert_close(seen, ALBEDO * factor)


def test_each_view_has_its_own_light_and_textureless_is_white_matter():
    lights = torch.tensor([[0.0, 3.0, 0.0], [0.0, -3.0, 0.0]])
    views = torch.tensor([0, 1])
    albedo, normals, positions = (x.expand(2, 3) for x in (ALBEDO, NORMAL, POSITION))
    two = {"albedo": albedo, "normals": normals, "positions": positions, "view_indices": views}
    seen = Lambertian(light_position=lights, ambient=0.25, diffuse=0.75)(**two)
    torch.testing.assert_close(seen, torch.cat([ALBEDO, ALBEDO * 0.25]))
    shader = Lambertian(light_position=lights, ambient=0.25, diffuse=0.75, textureless=True)
    torch.testing.assert_close(shader(**two), torch.tensor([[1.0] * 3, [0.25] * 3]))


def test_textureless_teaches_the_shape_and_not_the_colour():
    albedo, normal = ALBEDO.clone().requires_grad_(), NORMAL.clone().requires_grad_()
    light = torch.tensor([[1.0, 3.0, 0.0]])
    shader = Lambertian(light_position=light, textureless=True)
    shader(albedo, normal, POSITION, torch.tensor([0])).sum().backward()
    assert albedo.grad is None or not albedo.grad.any()
    assert normal.grad is not None
    assert normal.grad.any()


def test_bad_lights_are_named():
    with pytest.raises(ValueError, match="light_position"):
        Lambertian(light_position=torch.zeros(3))
    with pytest.raises(ValueError, match="ambient and diffuse"):
        Lambertian(light_position=torch.zeros(1, 3), ambient=0.5, diffuse=0.6)
