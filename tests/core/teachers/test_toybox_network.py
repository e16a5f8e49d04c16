"""The embedded teacher's network: its inputs, its size, and its way through a folder."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.teachers.errors import TeacherWeightsError
from core.teachers.toybox_network import (
    CAMERA_FEATURES,
    FORMAT,
    IMAGE_SIZE,
    MAX_TOKENS,
    RAY_CHANNELS,
    ToyboxNetwork,
    camera_features,
    load_network,
    make_network,
    make_text_encoder,
    make_tokenizer,
    ray_features,
    save_network,
)
from nerf.cameras import camera_rays, orbit_c2w

WORDS = ["a", "red", "blue", "mushroom", "car"]


@pytest.fixture(scope="module")
def network() -> ToyboxNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = make_network(len(WORDS) + 4)
        for parameter in made.parameters():
            if not parameter.any():  # a new network predicts zero
                parameter.data.normal_(std=0.1)
    return made.eval().requires_grad_(False)


def test_camera_features_are_harmonics_that_know_no_seam() -> None:
    features = camera_features(torch.tensor([[30.0, 20.0], [390.0, 20.0], [-330.0, 20.0]]))
    assert features.shape == (3, CAMERA_FEATURES)
    torch.testing.assert_close(features[1], features[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(features[2], features[0], atol=1e-5, rtol=0)
    az, el = math.radians(30), math.radians(20)
    expected = [f(k * az) for k in (1, 2, 3) for f in (math.sin, math.cos)]
    expected += [f(k * el) for k in (1, 2) for f in (math.sin, math.cos)] + [1.0]
    torch.testing.assert_close(features[0], torch.tensor(expected), atol=1e-6, rtol=0)


def test_a_dropped_camera_is_zero_in_its_row_alone() -> None:
    nan = math.nan
    cameras = torch.tensor([[nan, nan], [10.0, nan], [nan, 10.0], [0.0, 0.0]])
    features = camera_features(cameras)
    assert not features[:3].any()
    assert features[3, -1] == 1
    assert features[3, 1] == 1


def test_ray_features_are_points_on_the_renderers_own_rays() -> None:
    cameras = torch.tensor([[35.0, 25.0], [200.0, -10.0], [90.0, 80.0]], dtype=torch.float64)
    features = ray_features(cameras, 8)
    assert features.shape == (3, 64, RAY_CHANNELS)
    c2w = orbit_c2w(cameras[:, 0], cameras[:, 1], 2.9)
    rays_o, rays_d = camera_rays(c2w, 40.0, 8, 8)
    rays_o, rays_d = rays_o.flatten(1, 2), rays_d.flatten(1, 2)
    backward = c2w[:, None, :3, 2]
    for i, depth in enumerate((-0.6, 0.0, 0.6)):
        # The ray meets the plane that faces the camera, `depth` behind the origin.
        along = (-depth - (rays_o * backward).sum(-1)) / (rays_d * backward).sum(-1)
        point = rays_o + along[..., None] * rays_d
        for j, wavelength in enumerate((4, 2, 1)):
            angle = point * (2 * math.pi / wavelength)
            for k, wave in enumerate((angle.sin(), angle.cos())):
                start = 9 * (2 * j + k) + 3 * i
                torch.testing.assert_close(features[..., start : start + 3], wave)
    torch.testing.assert_close(features[..., 54:57], backward.expand(-1, 64, -1))
    assert (features[..., 57] == 1).all()


def test_a_dropped_camera_has_no_rays() -> None:
    cameras = torch.tensor([[math.nan, 0.0], [0.0, math.nan], [0.0, 0.0]])
    features = ray_features(cameras, 8)
    assert not features[:2].any()
    assert features[2].any(0).any()


def test_the_whole_network_is_small(network: ToyboxNetwork) -> None:
    # Of the 2000 words of a large vocabulary; the shipped one is smaller.
    large = ToyboxNetwork(network.transformer, network.refiner, make_text_encoder(2000))
    assert sum(p.numel() for p in large.parameters()) <= 16_500_000


def test_values_have_the_shape_and_type_of_the_image(network: ToyboxNetwork) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=g)
    tokens = torch.randint(4, len(WORDS) + 4, (2, MAX_TOKENS), generator=g)
    text = network.encode_tokens(tokens)
    assert text.shape == (2, 1, 160)
    out = network(x, torch.rand(2, generator=g), text, torch.zeros(2, 2))
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert out.isfinite().all()


def test_a_saved_network_comes_back_rounded_to_half_precision(
    network: ToyboxNetwork, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_network(network, make_tokenizer(WORDS), {"kinds": {}, "colors": []}, tmp_path)
    # Saving leaves the network as it was.
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    loaded, tokenizer = load_network(tmp_path)
    assert loaded.state_dict().keys() == before.keys()
    for name, tensor in loaded.state_dict().items():
        rounded = before[name].half().float() if before[name].is_floating_point() else before[name]
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, rounded), name
    assert tokenizer("a red car").input_ids == make_tokenizer(WORDS)("a red car").input_ids
    stored = load_file(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}


def test_the_folder_holds_no_pickle_and_says_what_it_is(
    network: ToyboxNetwork, tmp_path: Path
) -> None:
    save_network(network, make_tokenizer(WORDS), {"kinds": {}, "colors": []}, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert (tmp_path / "model_index.json").is_file()


def test_the_tokenizer_reads_words_in_any_case_and_marks_the_unknown() -> None:
    tokenizer = make_tokenizer(WORDS)
    ids = tokenizer.get_vocab()
    expected = [ids["<bos>"], ids["a"], ids["red"], ids["mushroom"], ids["<eos>"]]
    assert tokenizer("A Red MUSHROOM").input_ids == expected
    unknown = tokenizer("a vermilion mushroom").input_ids
    assert unknown[2] == ids["<unk>"]
    assert len(tokenizer("red " * 100, truncation=True).input_ids) == MAX_TOKENS


def test_a_folder_of_another_format_is_named(network: ToyboxNetwork, tmp_path: Path) -> None:
    save_network(network, make_tokenizer(WORDS), {}, tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace(FORMAT, "sds3d-toybox-teacher/2"))
    with pytest.raises(TeacherWeightsError, match="toybox-teacher/2"):
        load_network(tmp_path)
    index.write_text("{")
    with pytest.raises(TeacherWeightsError, match=r"model_index\.json .* is damaged"):
        load_network(tmp_path)
