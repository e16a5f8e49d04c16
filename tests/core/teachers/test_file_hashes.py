"""A hash that is remembered is the file's, whatever became of the file or of the note."""

import hashlib
import os
from pathlib import Path

import pytest

from core.teachers import file_hashes
from core.teachers.file_hashes import file_sha256
from core.teachers.folder import TeacherFolder, read_folder


class Reader:
    """Counts the files that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._read = file_hashes._read
        monkeypatch.setattr(file_hashes, "_read", self)
        monkeypatch.setattr(file_hashes, "_SETTLED_NS", 0)

    def __call__(self, path: Path) -> bytes:
        self.count += 1
        return self._read(path)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)) * 40)
    return path


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    return Reader(monkeypatch)


def true_hash(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def test_a_file_that_did_not_change_is_read_once(
    weights: Path, reader: Reader, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    for _ in range(3):
        assert file_sha256(weights, folder=notes, least_bytes=100) == true_hash(weights)
    assert reader.count == 1
    assert [path.suffix for path in notes.iterdir()] == [".json"]


def test_small_files_and_files_of_this_moment_leave_no_note(
    weights: Path, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    assert file_sha256(weights, folder=notes, least_bytes=10**6) == true_hash(weights)
    monkeypatch.setattr(file_hashes, "_SETTLED_NS", 10**12)
    assert file_sha256(weights, folder=notes, least_bytes=100) == true_hash(weights)
    assert not notes.exists()
    assert reader.count == 2


@pytest.mark.parametrize("fault", ["longer", "same size and time", "exchanged", "moved"])
def test_another_file_is_read_again(
    fault: str, weights: Path, reader: Reader, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    before = file_sha256(weights, folder=notes, least_bytes=100)
    stat, data = weights.stat(), bytearray(weights.read_bytes())
    data[7] ^= 1
    if fault == "longer":
        weights.write_bytes(weights.read_bytes() + b"x")
    elif fault == "same size and time":
        while weights.stat().st_ctime_ns == stat.st_ctime_ns:  # its clock ticks in milliseconds
            weights.write_bytes(data)
            os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif fault == "exchanged":
        other = weights.with_name("other")
        other.write_bytes(data)
        os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        other.replace(weights)
    else:
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        weights = weights.rename(folder / weights.name)
        weights.write_bytes(data)
    found = file_sha256(weights, folder=notes, least_bytes=100)
    assert found == true_hash(weights) != before
    assert reader.count == 2


@pytest.mark.parametrize(
    "torn", [b"", b"{", b"[]", b"null", b'{"sha256": "xyz"}', b'{"sha256": "00"}', b"\xff\x00"]
)
def test_a_torn_note_is_forgotten(
    torn: bytes, weights: Path, reader: Reader, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    file_sha256(weights, folder=notes, least_bytes=100)
    (note,) = notes.iterdir()
    note.write_bytes(torn)
    for _ in range(2):
        assert file_sha256(weights, folder=notes, least_bytes=100) == true_hash(weights)
    assert reader.count == 2


def test_where_nothing_can_be_written_files_are_read_each_time(
    weights: Path, reader: Reader, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.write_text("a file is in the way")
    for _ in range(2):
        assert file_sha256(weights, folder=notes, least_bytes=100) == true_hash(weights)
    assert reader.count == 2
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "nothing", folder=notes)


def test_a_teachers_hash_is_made_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is the one that folders have had, so that finished runs stay theirs."""
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir()
    scheduler.write_text("{}")
    index = '{"_class_name": "X", "scheduler": ["diffusers", "DDPMScheduler"]}'
    (tmp_path / "model_index.json").write_text(index)
    expected = hashlib.sha256(b"scheduler/scheduler_config.json\0" + true_hash(scheduler))
    folder: TeacherFolder = read_folder(tmp_path)
    assert folder.sha256() == expected.hexdigest()
    asked: list[Path] = []

    def listen(path: Path) -> bytes:
        asked.append(path)
        return true_hash(path)

    monkeypatch.setattr("core.teachers.folder.file_sha256", listen)
    assert folder.sha256() == expected.hexdigest()
    assert asked == [scheduler]
