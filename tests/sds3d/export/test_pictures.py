import hashlib
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from nerf.mesh import Shading, TexturedMesh
from sds3d.export import (
    ExportError,
    contact_sheet,
    export_contact_sheet,
    export_mesh,
    export_pictures,
    export_turntable,
    render_orbit,
)

BLUE, GREEN, RED = np.array([13, 51, 247]), np.array([64, 204, 115]), np.array([140, 28, 8])
FLAT = Shading(ambient=1.0, background=(0, 0, 0), supersampling=1)


def share(image: np.ndarray, color: np.ndarray) -> float:
    return float((np.abs(image.astype(int) - color).max(axis=-1) <= 3).mean())


def decode(path: Path) -> tuple[bytes, str]:
    """Every frame as RGB bytes, and what the decoder says about the film."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    done = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
    )
    return done.stdout, done.stderr.decode()


def test_the_orbit_begins_in_front_and_turns_towards_plus_x(textured_mesh: TexturedMesh):
    front, right, back, left = render_orbit(
        textured_mesh, views=4, elevation_deg=0, size=128, shading=FLAT
    )
    assert share(front, BLUE) > 0.02
    assert share(back, BLUE) == 0
    assert share(right, GREEN) > share(front, GREEN) > 0
    assert share(left, GREEN) < 1e-3
    assert share(back, RED) > 0.1


def test_the_picture_is_fitted_whatever_the_meshs_place_and_size(textured_mesh: TexturedMesh):
    plain = render_orbit(textured_mesh, views=2, size=64, shading=FLAT)
    moved = textured_mesh.transformed(scale=0.01, offset=np.array([5.0, 2.0, -1.0]))
    again = render_orbit(moved, views=2, size=64, shading=FLAT)
    assert (np.abs(plain.astype(int) - again).max(axis=-1) > 3).mean() < 0.01
    covered = (plain.max(axis=-1) > 0).any(axis=0)
    assert not covered[0].any()
    assert not covered[:, 0].any()
    assert covered.any(axis=1).sum() > 36


def test_the_sheet_holds_each_frame_in_its_place(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (7, 20, 30, 3), dtype=np.uint8)
    export_contact_sheet(list(frames), tmp_path / "sheet.png", columns=3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * 20 + 2 * 4, 3 * 30 + 2 * 4, 3)
    for index, frame in enumerate(frames):
        top, left = index // 3 * 24, index % 3 * 34
        np.testing.assert_array_equal(sheet[top : top + 20, left : left + 30], frame)
    assert (sheet[48:, 34:] == 255).all()
    assert contact_sheet(frames[:2], columns=4).shape == (20, 64, 3)


def test_the_film_has_every_frame_and_its_colours(tmp_path):
    frames = np.empty((12, 64, 96, 3), dtype=np.uint8)
    rng = np.random.default_rng(2)
    colors = rng.integers(20, 235, (12, 3))
    frames[:] = colors[:, None, None, :]
    hashes = export_turntable(frames, tmp_path / "film.mp4", frames_per_second=12)
    data = (tmp_path / "film.mp4").read_bytes()
    assert hashes == {str(tmp_path / "film.mp4"): hashlib.sha256(data).hexdigest()}
    decoded, words = decode(tmp_path / "film.mp4")
    read = np.frombuffer(decoded, np.uint8).reshape(-1, 64, 96, 3)
    assert read.shape == frames.shape
    assert np.abs(read[:, 32, 48].astype(int) - colors).max() <= 12
    assert "yuv420p" in words
    assert "12 fps" in words
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((3, 63, 64, 3), np.uint8), "even height"),
        (np.zeros((3, 64, 64, 3), np.float32), "uint8"),
        (np.zeros((0, 64, 64, 3), np.uint8), "N >= 1"),
        (np.zeros((3, 64, 64), np.uint8), r"\[N, H, W, 3\]"),
    ],
)
def test_frames_of_another_form_are_refused(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        export_turntable(frames, tmp_path / "film.mp4")


def test_an_encoder_that_fails_is_quoted(tmp_path, monkeypatch):
    encoder = tmp_path / "encoder"
    encoder.write_text("#!/bin/sh\ncat > /dev/null\necho 'no such codec' >&2\nexit 3\n")
    encoder.chmod(0o755)
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: str(encoder))
    with pytest.raises(ExportError, match="no such codec"):
        export_turntable(np.zeros((3, 64, 64, 3), np.uint8), tmp_path / "film.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["encoder"]


def test_a_package_is_complete_and_its_hashes_are_the_files(textured_mesh: TexturedMesh, tmp_path):
    exported = export_mesh(textured_mesh, tmp_path, formats=("glb", "obj"))
    pictures = export_pictures(textured_mesh, tmp_path, size=64, turntable_frames=6)
    hashes = exported.files | pictures
    assert {str(p) for p in tmp_path.iterdir()} == set(hashes)
    for name, digest in hashes.items():
        assert hashlib.sha256(Path(name).read_bytes()).hexdigest() == digest
    suffixes = sorted(Path(name).suffix for name in hashes)
    assert suffixes == [".glb", ".mp4", ".mtl", ".obj", ".png", ".png"]
    assert exported.report.watertight
    assert max(exported.report.size) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="formats"):
        export_mesh(textured_mesh, tmp_path, formats=())
