"""The cache of compiled kernels: torn files, two processes, folders that cannot be used."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nerf.cuda import kernel_cache
from nerf.cuda.kernel_cache import KernelCache

ROOT = Path(__file__).parents[3]
KEY = "0123abcd"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    kept = KernelCache(tmp_path / "not" / "there")
    assert kept.read(KEY) is None
    assert kept.write(KEY, b"machine code")
    assert KernelCache(kept.folder).read(KEY) == b"machine code"
    assert kept.read("other") is None
    assert [path.name for path in kept.folder.iterdir()] == [f"{KEY}.kernel"]


def test_a_torn_file_is_nothing_wherever_it_is_torn(tmp_path: Path) -> None:
    kept = KernelCache(tmp_path)
    kept.write(KEY, b"machine code")
    whole = kept.path(KEY).read_bytes()
    for length in range(len(whole)):
        kept.path(KEY).write_bytes(whole[:length])
        assert kept.read(KEY) is None
    for at in range(len(whole)):
        kept.path(KEY).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert kept.read(KEY) is None
    kept.path(KEY).write_bytes(bytes(len(whole)))  # a power cut may leave zeros
    assert kept.read(KEY) is None
    assert kept.write(KEY, b"machine code")
    assert kept.read(KEY) == b"machine code"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    kept = KernelCache(tmp_path)
    kept.write(KEY, b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernel_cache.os, step, full)
    assert not kept.write(KEY, b"after")
    monkeypatch.undo()
    assert kept.read(KEY) == b"before"
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEY}.kernel"]


def test_a_process_that_dies_while_it_writes_is_cleaned_up_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KernelCache(tmp_path)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    # Killed between the write and the rename: nothing of its own runs any more.
    monkeypatch.setattr(kernel_cache.os, "replace", die)
    monkeypatch.setattr(kernel_cache.os, "unlink", lambda _: None)
    with pytest.raises(Killed):
        kept.write(KEY, b"machine code")
    monkeypatch.undo()
    (left,) = tmp_path.glob("*.partial")
    assert kept.read(KEY) is None
    kept.write("other", b"soon after")
    assert left.exists()  # it might be being written
    hours_ago = time.time() - 7200
    os.utime(left, (hours_ago, hours_ago))
    kept.write(KEY, b"machine code")
    assert not left.exists()
    assert kept.read(KEY) == b"machine code"


_WRITE_OFTEN = """
import sys, time
from pathlib import Path
from nerf.cuda.kernel_cache import KernelCache
folder, letter = Path(sys.argv[1]), sys.argv[2].encode()
(folder / sys.argv[2]).touch()
while not (folder / "go").exists():
    time.sleep(0.001)
for _ in range(50):
    assert KernelCache(folder).write("0123abcd", letter * 100_000)
"""


def test_two_processes_that_write_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITE_OFTEN, str(tmp_path), letter], cwd=ROOT)
        for letter in "ab"
    ]
    while not all((tmp_path / letter).exists() for letter in "ab"):
        assert all(writer.poll() is None for writer in writers)
        time.sleep(0.001)
    (tmp_path / "go").touch()
    kept = KernelCache(tmp_path)
    seen: set[bytes] = set()
    while any(writer.poll() is None for writer in writers):
        code = kept.read(KEY)
        assert code is not None or not seen  # once there, it never goes away or tears
        if code is not None:
            assert len(code) == 100_000
            assert len(set(code)) == 1
            seen.add(code[:1])
    assert [writer.returncode for writer in writers] == [0, 0]
    assert kept.read(KEY) is not None
    assert not list(tmp_path.glob("*.partial"))


def test_a_folder_that_cannot_be_made_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kept = KernelCache(tmp_path / "file" / "below")
    assert kept.read(KEY) is None
    assert not kept.write(KEY, b"machine code")


@pytest.mark.skipif(sys.platform != "linux", reason="the variable is that of Linux")
def test_the_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernel_cache.default_folder() == tmp_path / "sds3d" / "kernels"


@pytest.mark.skipif(sys.platform != "linux", reason="home folders are found otherwise elsewhere")
def test_a_user_without_a_home_keeps_them_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert kernel_cache.default_folder() == tmp_path / "sds3d" / "kernels"
