"""The kernels' self-tests in a process of their own, and what they found, kept on disk.

A kernel that reaches for memory that is not its own ends CUDA for the whole process that launched
it: after it nothing can be computed there, by plain torch neither, and there is nothing to fall
back to. So a process that has nothing to lose launches them first, once for each (sources, device,
driver, versions, and kind of table of the hash grid); what it found lies beside the compiled
kernels.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal, get_args

import torch

from nerf.cuda.compiler import nvrtc_version
from nerf.cuda.kernel_cache import KernelCache, default_folder

__all__ = ["Part", "Verdict", "ask", "kept_or_asked", "main", "verdict"]

Part = Literal["hash grid", "rays", "tinycudann"]
OURS: tuple[Part, ...] = ("hash grid", "rays")
FOREIGN: tuple[Part, ...] = ("tinycudann",)
"""Asked by itself, and only where it is installed."""

Tables = tuple[int, torch.dtype]
"""Features of an entry and dtype: the hash grid's kernels are compiled anew for each."""
COMMON: Tables = (2, torch.float32)
"""Asked about together with the rays."""
_DTYPES = {str(dtype): dtype for dtype in (torch.float16, torch.float32, torch.float64)}

PROBE_SECONDS = 120.0
"""Time for the start of Python, of CUDA, the compiler, and the tests."""

_PACKAGES = ("cuda", "hash_grid")
_ROOT = Path(__file__).parents[1]
_NOT_ABOUT_KERNELS = ("out of memory", "busy or unavailable")
"""Of faults that say that another process cannot have the device now, as where only one may."""

_CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")
"""Ends that are a word on the kernels. A user or the system may end a process by another signal,
and one that ends by itself without an answer failed at something else, such as an import."""

_RUN = "import sys; sys.path.insert(0, sys.argv[1]); from nerf.cuda import probe; probe.main()"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a part's self-test found: a fault in plain words or none, if that is known at all."""

    known: bool
    fault: str | None = None


UNKNOWN = Verdict(known=False)
Verdicts = Mapping[Part, Verdict]
Command = Callable[[Sequence[Part]], Sequence[str]]
"""The command that tests parts and prints a line of JSON for each, `[part, fault or null]`."""


def verdict(part: Part, device: torch.device, tables: Tables = COMMON) -> Verdict:
    """What the self-test of a part finds on a CUDA device, in another process.

    tables: of the hash grid, those that it is to compute.

    Unknown on other devices, and where no such process can be had: the caller tests for itself.
    Raises CudaKernelsUnavailable where there is no NVRTC.
    """
    if device.type != "cuda":
        return UNKNOWN
    index = torch.cuda.current_device() if device.index is None else device.index
    parts = FOREIGN if part in FOREIGN else OURS if tables == COMMON else (part,)
    return _verdicts(index, parts, tables).get(part, UNKNOWN)


@cache
def _verdicts(index: int, parts: tuple[Part, ...], tables: Tables) -> Verdicts:
    kept, command = KernelCache(default_folder()), partial(_command, index, tables=tables)
    return kept_or_asked(_key(index, parts, tables), kept, command, parts=parts)


def kept_or_asked(
    key: str,
    kept: KernelCache,
    command: Command,
    seconds: float = PROBE_SECONDS,
    parts: Sequence[Part] = OURS,
) -> Verdicts:
    """What was found under this key an earlier time, or is now; kept where it will stay true.

    Of each fault it says whether it is kept, and how to test again.
    """
    found, stays = _read(kept.read(key), parts), True
    if found is None:
        found, lasting = ask(command, seconds, parts)
        document = [[part, verdict.fault] for part, verdict in found.items()]
        stays = lasting and kept.write(key, json.dumps(document).encode())
    again = (
        f"kept in {kept.path(key)}: delete it to test again"
        if stays
        else "the next run tests again"
    )
    return {
        part: verdict
        if verdict.fault is None
        else Verdict(known=True, fault=f"{verdict.fault}; {again}")
        for part, verdict in found.items()
    }


def ask(
    command: Command, seconds: float = PROBE_SECONDS, parts: Sequence[Part] = OURS
) -> tuple[Verdicts, bool]:
    """What the command finds of the parts, and whether it would find it again.

    Each part has a process of its own: after an illegal access all that its process asks of CUDA
    fails, which is no word on the parts after it. A part in which the command dies, hangs or says
    nothing is at fault. Lasting are answers and crashes; not what took too long, was ended by
    another, failed without an answer, or could not be asked.
    """
    found: dict[Part, Verdict] = {}
    lasting = True
    for part in parts:
        answers, end = _answers(command([part]), seconds)
        if part not in answers and end is None:
            return found | dict.fromkeys(parts[len(found) :], UNKNOWN), False
        words = "" if end is None else end.words
        fault = answers.get(part, f"their self-test, in a process of its own, {words}")
        known = fault is None or not any(text in fault for text in _NOT_ABOUT_KERNELS)
        found[part] = Verdict(known=True, fault=fault) if known else UNKNOWN
        lasting &= known and (part in answers or (end is not None and end.crashed))
    return found, lasting


@dataclass(frozen=True, kw_only=True)
class _End:
    """How a command ended, in plain words, and whether by what a kernel can do."""

    words: str
    crashed: bool = False


def _answers(command: Sequence[str], seconds: float) -> tuple[dict[Part, str | None], _End | None]:
    """What a command said of parts, and how it ended; None for one that cannot be started."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
            # A terminal's Ctrl-C goes to its whole group of processes: the run ends in good order
            # after one, and its self-test should not die meanwhile.
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        return _parsed(error.stdout or b""), _End(words=f"took longer than {seconds:g} s")
    except OSError:
        return {}, None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode < 0:
        number = -done.returncode
        known = number in [known.value for known in signal.Signals]
        name = signal.Signals(number).name if known else f"signal {number}"
        end = _End(words=f"was ended by {name}", crashed=name in _CRASHES)
    elif done.returncode > 0:
        end = _End(words=f"ended with {done.returncode} ({said[-1] if said else 'no words'})")
    else:
        end = _End(words="gave no answer")
    return _parsed(done.stdout), end


def _parsed(output: bytes) -> dict[Part, str | None]:
    """The lines that are answers; libraries may have written others."""
    found: dict[Part, str | None] = {}
    for line in output.splitlines():
        with contextlib.suppress(ValueError):
            found |= _pairs([json.loads(line)])
    return found


def _pairs(document: object) -> dict[Part, str | None]:
    """[[part, fault], ...] as a dict. Raises ValueError for anything else."""
    found: dict[Part, str | None] = {}
    if not isinstance(document, list):
        raise ValueError("not a list")
    for pair in document:
        if not (isinstance(pair, list) and len(pair) == 2 and pair[0] in get_args(Part)):
            raise ValueError("not a part and its fault")
        part, fault = pair
        if not (fault is None or isinstance(fault, str)):
            raise ValueError("a fault is a text or null")
        found[part] = fault
    return found


def _read(kept: bytes | None, parts: Sequence[Part]) -> Verdicts | None:
    """Verdicts as they were written, None where nothing is or something else."""
    if kept is None:
        return None
    try:
        found = _pairs(json.loads(kept))
    except ValueError:
        return None
    if found.keys() != set(parts):
        return None
    return {part: Verdict(known=True, fault=fault) for part, fault in found.items()}


def _key(index: int, parts: Sequence[Part], tables: Tables = COMMON) -> str:
    """Name of what decides the outcome: the code, the device, its driver, versions, the tables."""
    files = [path for name in _PACKAGES for path in sorted((_ROOT / name).rglob("*.*"))]
    code = [
        path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".cu", ".cuh")
    ]
    properties = torch.cuda.get_device_properties(index)
    about = [properties.name, properties.major, properties.minor, torch.__version__]
    maker = [_build_of("tinycudann") if part in FOREIGN else nvrtc_version() for part in parts]
    document = [code, about, list(parts), maker, _driver(), *map(str, tables)]
    return f"probe-{hashlib.sha256(json.dumps(document).encode()).hexdigest()[:32]}"


def _build_of(package: str) -> list[object]:
    """Where an installed package lies and when its files there were written."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent
    return [str(folder), sorted(path.stat().st_mtime_ns for path in folder.iterdir())]


def _driver() -> str:
    """The driver's version, as well as it can be had."""
    with contextlib.suppress(OSError):
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    # Of torch's builds for CUDA alone.
    return str(torch._C._cuda_getDriverVersion())  # pyright: ignore[reportAttributeAccessIssue]


def _command(index: int, parts: Sequence[Part], tables: Tables = COMMON) -> Sequence[str]:
    start = [sys.executable or "python", "-c", _RUN, str(_ROOT.parent), str(index)]
    return [*start, *map(str, tables), *parts]


def main() -> None:
    """Test the parts that the command line names, and say of each what is wrong."""
    from nerf.cuda import rays
    from nerf.hash_grid import cuda, self_test, tinycudann

    index, n_features, dtype, *parts = sys.argv[2:]
    device = torch.device("cuda", int(index))
    tests: dict[Part, Callable[[torch.device], str | None]] = {
        "hash grid": partial(cuda.fault, n_features=int(n_features), dtype=_DTYPES[dtype]),
        "rays": rays.fault,
        "tinycudann": partial(self_test.fault, tinycudann.encode),
    }
    for part in get_args(Part):
        if part in parts:
            print(json.dumps([part, tests[part](device)]), flush=True)
