"""What this machine has, what is missing, and what that means for a run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from .atomic import MIN_FREE_BYTES
from .config import PresetName
from .doctor_teachers import teacher_findings
from .errors import TeacherError
from .findings import Finding, total_memory

PACKAGES = (
    "sds3d",
    "torch",
    "diffusers",
    "transformers",
    "safetensors",
    "numba",
    "nerfacc",
    "trimesh",
    "scikit-image",
    "xatlas",
    "fast-simplification",
    "gradio",
)

MIN_MEMORY_BYTES = 2 * 2**30


def examine(teacher: str = "", preset: PresetName | None = None) -> list[Finding]:
    """Look at everything, of teachers at the embedded one and at `teacher`, or else the preset's.

    A check that itself fails becomes a finding.
    """
    from .presets import PRESETS

    if not teacher and preset is not None:
        teacher = PRESETS[preset].teacher
    checks: list[Callable[[], list[Finding]]] = [
        _versions,
        _device,
        _memory,
        _disk,
        _encoding,
        _cuda_kernels,
        _tinycudann,
        _ffmpeg,
        _validator,
        _teacher,
    ]
    if teacher:
        checks.append(lambda: teacher_findings(teacher, preset))
    findings = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:
            text = f"the check failed ({type(error).__name__}: {error})"
            findings.append(Finding(name=check.__name__.strip("_"), status="problem", text=text))
    return findings


def healthy(findings: list[Finding]) -> bool:
    """Whether a run can work here."""
    return all(finding.status != "problem" for finding in findings)


def report(findings: list[Finding]) -> str:
    """The findings as aligned lines, and a last line that sums them up."""
    width = max(len(finding.name) for finding in findings)
    lines = [f"{f.status:<8}{f.name:<{width}}  {f.text}" for f in findings]
    last = "sds3d can run here" if healthy(findings) else "sds3d cannot run here: see each problem"
    return "\n".join([*lines, last])


def to_json(findings: list[Finding]) -> str:
    """The findings as one line of JSON."""
    document = {"healthy": healthy(findings), "findings": [asdict(f) for f in findings]}
    return json.dumps(document)


def _versions() -> list[Finding]:
    found = [
        Finding(
            name="python",
            status="ok" if sys.version_info >= (3, 11) else "problem",
            text=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        )
    ]
    for name in PACKAGES:
        try:
            text = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name == "xatlas":
                text = "not installed: colours are stored per vertex instead of in a texture"
                found.append(Finding(name=name, status="missing", text=text))
            else:
                text = "not installed: install sds3d again"
                found.append(Finding(name=name, status="problem", text=text))
        else:
            found.append(Finding(name=name, status="ok", text=text))
    return found


def _device() -> list[Finding]:
    import torch

    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    found = [Finding(name="cpu", status="ok", text=threads)]
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        text = f"{torch.cuda.get_device_name(0)}, {total / 2**30:.0f} GiB; --device auto takes it"
        found.append(Finding(name="cuda", status="ok", text=text))
    else:
        text = "no device: everything runs on the CPU"
        found.append(Finding(name="cuda", status="missing", text=text))
    return found


def _memory() -> list[Finding]:
    total = total_memory("cpu")
    if total is not None:
        status = "ok" if total >= MIN_MEMORY_BYTES else "problem"
        text = f"{total / 2**30:.1f} GiB in all"
        with contextlib.suppress(OSError, ValueError):
            unused = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            text += f", {unused / 2**30:.1f} GiB unused"
        return [Finding(name="memory", status=status, text=text)]
    return [Finding(name="memory", status="missing", text="the system does not say how much")]


def _disk() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    writable = os.access(Path.cwd(), os.W_OK)
    text = f"{free / 2**30:.1f} GiB free in the current folder"
    if not writable:
        text += ", which cannot be written: use --out"
    enough = free >= MIN_FREE_BYTES and writable
    return [Finding(name="disk", status="ok" if enough else "problem", text=text)]


def _encoding() -> list[Finding]:
    import torch

    from nerf.hash_grid import backend_fault, choose_backend

    found = []
    for name in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        backend, reason = choose_backend("auto", torch.device(name))
        wrong = backend_fault(backend, torch.device(name))
        text = f"{backend}: {reason}; " + (wrong or "its self-test against the reference passed")
        status = "problem" if wrong else "ok"
        found.append(Finding(name=f"encoding on {name}", status=status, text=text))
    return found


def _cuda_kernels() -> list[Finding]:
    """Whether our CUDA kernels compile here, which needs no device, and whether they run."""
    import torch

    from nerf.cuda import rays
    from nerf.cuda.compiler import compile_source, nvrtc_version, supported_capabilities
    from nerf.cuda.errors import CudaKernelsUnavailable
    from nerf.hash_grid import cuda

    if torch.cuda.is_available():
        looked = (cuda.load(torch.device("cuda")), rays.load(torch.device("cuda")))
        status = "ok" if all(works for works, _ in looked) else "missing"
        text = "; ".join(text for _, text in looked)
        return [Finding(name="cuda kernels", status=status, text=text)]
    try:
        version = ".".join(map(str, nvrtc_version()))
        newest = max(supported_capabilities())
        compile_source(cuda.source(2, torch.float32), f"sm_{newest}")
    except CudaKernelsUnavailable as error:
        text = f"there is neither a device here to run them on nor a compiler for them ({error})"
        return [Finding(name="cuda kernels", status="missing", text=text)]
    text = f"NVRTC {version} compiles them; there is no device here to run them on"
    return [Finding(name="cuda kernels", status="missing", text=text)]


def _tinycudann() -> list[Finding]:
    import torch

    from nerf.hash_grid.tinycudann import works

    usable, reason = works(torch.device("cuda"))
    return [Finding(name="tinycudann", status="ok" if usable else "missing", text=reason)]


def _ffmpeg() -> list[Finding]:
    import imageio_ffmpeg

    try:
        text, status = str(imageio_ffmpeg.get_ffmpeg_version()), "ok"
    except (RuntimeError, OSError) as error:
        text, status = f"turntable.mp4 cannot be written ({error}): install ffmpeg", "problem"
    return [Finding(name="ffmpeg", status=status, text=text)]


def _validator() -> list[Finding]:
    node = shutil.which("node")
    absent = "the Khronos glTF check is left out, which only the tests use"
    if node is None:
        return [Finding(name="node", status="missing", text=f"not on PATH: {absent}")]
    command = [node, "-e", "process.stdout.write(require('gltf-validator').version())"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        version = run.stdout.strip() if run.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        version = ""
    if not version:
        text = f"not installed for node: {absent}"
        return [Finding(name="gltf-validator", status="missing", text=text)]
    return [Finding(name="gltf-validator", status="ok", text=version)]


def _teacher() -> list[Finding]:
    from .teachers import EMBEDDED, TOYBOX_FOLDER, load_teacher, pinned_sha256

    try:
        teacher = load_teacher(EMBEDDED, "cpu")
    except TeacherError as error:
        return [Finding(name="teacher toybox", status="problem", text=str(error))]
    parameters = sum(p.numel() for p in teacher.module.parameters())
    pinned = "as shipped" if pinned_sha256(TOYBOX_FOLDER) else "no recorded hash to compare with"
    text = f"{parameters / 1e6:.1f} M parameters, sha256 {teacher.weights_sha256} ({pinned})"
    return [Finding(name="teacher toybox", status="ok", text=text)]
