"""A turntable film of frames rendered elsewhere."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from sds3d.atomic import sha256_file
from sds3d.export.atomic import DiskFullError, ExportError, replacing


def export_turntable(
    frames: np.ndarray | Sequence[np.ndarray], path: Path, *, frames_per_second: int = 24
) -> dict[str, str]:
    """Write frames [N, H, W, 3] uint8 as an H.264 mp4 that browsers play; {path: sha256}.

    Height and width must be even (the chroma planes have half the size). Raises ExportError with
    the encoder's own last words when it fails, DiskFullError when it ran out of space.
    """
    film = as_frames(frames)
    _, height, width, _ = film.shape
    if height % 2 or width % 2:
        raise ValueError(f"frames must have an even height and width, got {height} x {width}.")
    if path.suffix != ".mp4":
        raise ValueError(f"a turntable is an .mp4 file, got {path.name!r}.")
    with replacing(path) as temporary:
        command = [
            imageio_ffmpeg.get_ffmpeg_exe(),
            *("-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"),
            *("-s", f"{width}x{height}", "-r", str(frames_per_second), "-i", "-"),
            # The tags say which matrix turned RGB into YUV; untagged, players guess it by size.
            *("-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709"),
            *("-color_primaries", "bt709", "-color_trc", "iec61966-2-1", "-color_range", "tv"),
            *("-c:v", "libx264", "-preset", "medium", "-crf", "18", "-pix_fmt", "yuv420p"),
            *("-threads", "2", "-movflags", "+faststart", "-map_metadata", "-1"),
            *("-fflags", "+bitexact", "-flags:v", "+bitexact", str(temporary)),
        ]
        # input= is written by communicate(), which survives an encoder that dies early.
        run = subprocess.run(command, input=film.tobytes(), capture_output=True, check=False)
        if run.returncode != 0:
            words = run.stderr.decode(errors="replace").strip().splitlines()
            message = words[-1] if words else f"exit status {run.returncode}"
            if any("No space left on device" in line for line in words):
                raise DiskFullError(
                    f"no space left to write {path.name} in {path.parent}; free some space, or "
                    "choose another folder, and export again. Nothing was overwritten."
                )
            raise ExportError(f"ffmpeg could not write {path.name}: {message}")
    return {str(path): sha256_file(path)}


def as_frames(frames: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """One contiguous [N, H, W, 3] uint8 array, N >= 1; ValueError for anything else."""
    film = np.ascontiguousarray(frames if isinstance(frames, np.ndarray) else np.stack(frames))
    if film.ndim != 4 or film.shape[3] != 3 or film.dtype != np.uint8 or len(film) == 0:
        raise ValueError(
            f"frames must be [N, H, W, 3] uint8 with N >= 1, got {list(film.shape)} {film.dtype}."
        )
    return film
