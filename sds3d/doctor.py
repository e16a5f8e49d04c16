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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .atomic import MIN_FREE_BYTES
from .config import PresetName
from .errors import Sds3dError, TeacherError

if TYPE_CHECKING:
    from core.teachers.folder import TeacherFolder
    from core.teachers.pretrained import PretrainedTeacher
    from core.teachers.toybox import ToyboxTeacher

    from .optimize_config import OptimizeConfig
    from .step_memory import StepMemory

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


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at. "missing" costs something but not the run; "problem" prevents it."""

    name: str
    status: Literal["ok", "missing", "problem"]
    text: str


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
    total = _total_memory("cpu")
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


def teacher_findings(name: str, preset: PresetName | None = None) -> list[Finding]:
    """Whether a teacher's files are there and whole, and what a step of a preset takes with it.

    A teacher of the preset's second stage is looked at as well. Without a preset it is a published
    recipe for the teacher, of which the first stage counts. Nothing is fetched.
    """
    from .config import GenerateConfig
    from .presets import PRESETS
    from .refine import second_stage

    if preset is None:
        return _findings(name, "teacher", None)
    options = PRESETS[preset].optimize
    found = _findings(name, "teacher", _Counted(f"--preset {preset}", options))
    if options.refine.refine_steps == 0 or options.refine.refine_teacher in ("", name):
        return found
    stage = second_stage(GenerateConfig(prompt="a thing", teacher=name, optimize=options))
    counted = _Counted(f"the second stage of --preset {preset}", stage.optimize)
    return found + _findings(stage.teacher, "second teacher", counted)


@dataclass(frozen=True)
class _Counted:
    """Options whose step is counted, and what they are called."""

    name: str
    options: OptimizeConfig


def _findings(name: str, what: str, counted: _Counted | None) -> list[Finding]:
    """The findings of one teacher, which they call `what`."""
    from .teachers import look_at, require_kind

    try:
        folder = look_at(name, fetch=False)
        require_kind(folder)
    except Sds3dError as error:
        return [Finding(name=f"{what} {name}", status="problem", text=str(error))]
    found = []
    for part in folder.components:
        text = part.class_name
        if part.is_model:
            text += f", {part.parameters / 1e6:.1f} M parameters, {_gib(part.weight_bytes)} on disk"
        found.append(
            Finding(
                name=f"{what} {part.name}",
                status="problem" if part.problems else "ok",
                text="; ".join(part.problems) or text,
            )
        )
    return found if folder.problems else found + _memory_findings(name, what, folder, counted)


def _memory_findings(
    name: str, what: str, folder: TeacherFolder, counted: _Counted | None
) -> list[Finding]:
    """What the teacher takes, and a step with it, on the device that --device auto takes."""
    from core.teachers.pretrained import PretrainedTeacher
    from core.teachers.teacher import LatentTeacher

    from .device import resolve_device
    from .step_memory import step_memory
    from .teachers import outline_teacher
    from .user_config import config_path, read_user_config

    device, settings = resolve_device("auto"), read_user_config().teacher
    try:
        teacher = outline_teacher(name, device, fetch=False)
        if counted is None:
            counted, needs = _likeliest(name, teacher)
        else:
            needs = step_memory(teacher, counted.options)
    except Sds3dError as error:
        return [Finding(name=f"{what} step", status="problem", text=str(error))]
    options = counted.options
    found = []
    if isinstance(teacher, PretrainedTeacher):
        readers = [part for part in folder.components if part.name.startswith("text_encoder")]
        sizes = [teacher.dtype.itemsize * part.parameters for part in readers]
        reading = max(sizes) if settings.get("offload_text_encoders") else sum(sizes)
        dtype = str(teacher.dtype).removeprefix("torch.")
        text = f"on {device} in {dtype} the weights take {_gib(needs.weights + reading)} while the "
        text += f"prompt is read and {_gib(needs.weights)} after it"
        found.append(_fits(f"{what} memory", text, needs.weights + reading, device))
    count, side = options.views_per_step, teacher.image_size
    text = f"{counted.name} ({options.method}, {count} view{'s' if count > 1 else ''} of {side} "
    text += f"px) takes {_gib(needs.peak)} in a step, the weights among it"
    if isinstance(teacher, LatentTeacher) and not (options.latent or settings.get(_AGAIN)):
        checkpointed = outline_teacher(name, device, fetch=False, checkpoint_vae=True)
        less = step_memory(checkpointed, options)
        text += f", or {_gib(less.peak)} with {_AGAIN} = true in {config_path()}"
    text += "; counted from the shapes, not measured on a GPU, and what is optimised comes on top"
    return [*found, _fits(f"{what} step", text, needs.peak, device)]


_AGAIN = "checkpoint_vae"


def _likeliest(
    name: str, teacher: ToyboxTeacher | PretrainedTeacher
) -> tuple[_Counted, StepMemory]:
    """The options with which a teacher of that name is most likely asked, and what a step takes.

    Of several recipes for it the one that takes the most.
    """
    from core.teachers.pretrained import PretrainedTeacher
    from core.teachers.teacher import views_per_object

    from .presets import PRESETS
    from .recipes import RECIPES
    from .step_memory import step_memory

    presets: list[PresetName] = [p for p, chosen in RECIPES.items() if chosen.teacher == name]
    if not isinstance(teacher, PretrainedTeacher):
        presets = ["balanced"]
    elif not presets:
        presets = ["mvdream" if views_per_object(teacher) > 1 else "dreamfusion"]
    counted = [_Counted(f"--preset {preset}", PRESETS[preset].optimize) for preset in presets]
    needs = [step_memory(teacher, each.options) for each in counted]
    return max(zip(counted, needs, strict=True), key=lambda pair: pair[1].peak)


def _fits(name: str, text: str, needed: int, device: str) -> Finding:
    """A finding on memory; a problem where the device has less."""
    total = _total_memory(device)
    if total is None or needed <= total:
        return Finding(name=name, status="ok", text=text)
    remedy = "choose half precision, a smaller image_size or another teacher (docs/teachers.md)"
    text += f". This is more than the {_gib(total)} of this {device}: {remedy}"
    return Finding(name=name, status="problem", text=text)


def _total_memory(device: str) -> int | None:
    """Bytes that there are on "cpu" or "cuda"; None where the system does not say."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(0).total_memory
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
