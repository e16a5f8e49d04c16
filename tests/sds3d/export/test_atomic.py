import errno
import hashlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nerf.mesh import TexturedMesh
from sds3d.export import (
    DiskFullError,
    ExportError,
    NotWritableError,
    export_contact_sheet,
    export_glb,
    export_mesh,
    export_obj,
    export_turntable,
)
from sds3d.export.atomic import replacing, write_bytes

FRAMES = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def full_disk(monkeypatch):
    """Temporary files become links to /dev/full, whose every write fails with a real ENOSPC."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full to simulate a full disk with")
    real = tempfile.mkstemp

    def make(allowed: int = 0) -> None:
        left = allowed

        def mkstemp(*args, **kwargs):
            nonlocal left
            handle, name = real(*args, **kwargs)
            if left > 0:
                left -= 1
                return handle, name
            os.unlink(name)
            os.symlink("/dev/full", name)
            return handle, name

        monkeypatch.setattr(tempfile, "mkstemp", mkstemp)

    return make


def test_a_file_is_written_whole_with_its_hash_and_usual_permissions(tmp_path):
    data = os.urandom(10_000)
    assert write_bytes(tmp_path / "a.bin", data) == hashlib.sha256(data).hexdigest()
    assert snapshot(tmp_path) == {"a.bin": data}
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_failure_inside_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".txt"
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power"):
        interrupted()
    assert snapshot(tmp_path) == {"a.txt": b"old"}


def test_data_is_synced_before_the_rename(tmp_path, monkeypatch):
    events: list[str] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), rename(a, b))[1])
    write_bytes(tmp_path / "a.bin", b"x")
    assert events[:2] == ["fsync", "rename"]


@pytest.mark.parametrize("call", ["mkstemp", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_wherever_it_shows(tmp_path, monkeypatch, call, code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    (tmp_path / "mesh.bin").write_bytes(b"previous")
    monkeypatch.setattr(tempfile if call == "mkstemp" else os, call, fail)
    with pytest.raises(DiskFullError, match="no space left to write mesh"):
        write_bytes(tmp_path / "mesh.bin", b"new")
    assert snapshot(tmp_path) == {"mesh.bin": b"previous"}


@pytest.mark.parametrize("name", ["mesh.glb", "mesh.obj", "preview.png", "turntable.mp4"])
def test_a_full_disk_leaves_the_previous_export_intact(
    textured_mesh: TexturedMesh, tmp_path, full_disk, name
):
    assert textured_mesh.texture is not None
    exports = {
        "mesh.glb": lambda texture: export_glb(replace(textured_mesh, texture=texture), path),
        "mesh.obj": lambda texture: export_obj(replace(textured_mesh, texture=texture), path),
        "preview.png": lambda texture: export_contact_sheet(FRAMES, path),
        "turntable.mp4": lambda texture: export_turntable(FRAMES, path),
    }
    path = tmp_path / name
    exports[name](textured_mesh.texture)
    before = snapshot(tmp_path)
    full_disk()
    with pytest.raises(DiskFullError, match="no space left"):
        exports[name](255 - textured_mesh.texture)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("written", [0, 1, 2])
def test_an_obj_interrupted_between_its_files_still_refers_to_whole_ones(
    textured_mesh: TexturedMesh, load_textured, tmp_path, full_disk, written
):
    assert textured_mesh.texture is not None
    export_obj(textured_mesh, tmp_path / "mesh.obj")
    before = snapshot(tmp_path)
    full_disk(allowed=written)
    with pytest.raises(DiskFullError):
        export_obj(
            replace(textured_mesh, texture=255 - textured_mesh.texture), tmp_path / "mesh.obj"
        )
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + written
    np.testing.assert_array_equal(load_textured(tmp_path / "mesh.obj")[2], textured_mesh.texture)


def test_a_folder_that_cannot_be_written_is_named(textured_mesh: TexturedMesh, tmp_path):
    with pytest.raises(NotWritableError, match="folder that exists"):
        export_mesh(textured_mesh, tmp_path / "missing")
    (tmp_path / "file").write_text("in the way")
    for export in (export_glb, export_obj):
        with pytest.raises(NotWritableError):
            export(textured_mesh, tmp_path / "file" / "mesh.obj")
    (tmp_path / "mesh.glb").mkdir()
    with pytest.raises(ExportError, match="could not write"):
        export_glb(textured_mesh, tmp_path / "mesh.glb")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mesh.glb"]
