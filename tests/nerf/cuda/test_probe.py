"""The self-test in a process of its own: what is made of a crash, a hang, and of rubbish."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nerf.cuda import probe, rays
from nerf.cuda.compiler import KernelSource
from nerf.cuda.errors import CudaKernelsUnavailable
from nerf.cuda.kernel_cache import KernelCache
from nerf.cuda.probe import UNKNOWN, Part, Verdict, ask, kept_or_asked
from nerf.hash_grid import cuda, self_test, tinycudann

FINE = Verdict(known=True)
KEY = "probe-0123"


def script(text: str) -> Callable[[Sequence[Part]], list[str]]:
    """A probe that runs `text`, to which `parts` are those that it is asked for."""
    start = "import json, os, sys, time; parts = sys.argv[1:]; say = lambda *pair: print(json.dumps"
    start += "(pair), flush=True)\n"
    return lambda parts: [sys.executable, "-c", start + text, *parts]


def test_what_passes_and_what_does_not_is_said_part_by_part() -> None:
    found, lasting = ask(script("say('hash grid', None); say('rays', 'off by 1')"))
    assert found == {"hash grid": FINE, "rays": Verdict(known=True, fault="off by 1")}
    assert lasting


def test_a_crash_is_the_fault_of_its_part_alone() -> None:
    crash = "if parts[0] == 'hash grid': os.kill(os.getpid(), 11)\nsay('rays', None)"
    found, lasting = ask(script(crash))
    assert (
        found["hash grid"].fault == "their self-test, in a process of its own, was ended by SIGSEGV"
    )
    assert found["rays"] == FINE
    assert lasting
    # What was answered before a crash at the end of the process holds.
    found, lasting = ask(script("say(parts[0], None); os.abort()"))
    assert found == {"hash grid": FINE, "rays": FINE}
    assert lasting


def test_a_fault_that_stays_in_its_process_does_not_condemn_the_next_part(tmp_path: Path) -> None:
    # As after an illegal access: whatever is tested in the same process from then on fails.
    sticky = "broken = None\nfor part in parts:\n"
    sticky += "    broken = broken or ('an illegal access' if part == 'hash grid' else None)\n"
    sticky += "    say(part, broken)"
    together = subprocess.run(script(sticky)(probe.OURS), capture_output=True, check=True)
    assert together.stdout.count(b"an illegal access") == 2
    kept = KernelCache(tmp_path)
    for _ in range(2):
        found = kept_or_asked(KEY, kept, script(sticky))
        assert str(found["hash grid"].fault).startswith("an illegal access; kept in ")
        assert found["rays"] == FINE


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL", "SIGHUP"])
def test_what_another_ended_is_asked_again_at_the_next_run(tmp_path: Path, name: str) -> None:
    kept = KernelCache(tmp_path)
    number = int(signal.Signals[name])
    start = f"import signal; signal.signal({number}, signal.SIG_DFL); " if number != 9 else ""
    ended = script(f"{start}os.kill(os.getpid(), {number})")
    fault = kept_or_asked(KEY, kept, ended)["rays"].fault
    assert str(fault).endswith(f"was ended by {name}; the next run tests again")
    assert kept.read(KEY) is None
    fine = script("say('hash grid', None); say('rays', None)")
    assert kept_or_asked(KEY, kept, fine) == {"hash grid": FINE, "rays": FINE}
    # So is a process that failed at something else: no word on the kernels.
    fault = kept_or_asked("probe-other", kept, script("raise SystemExit(3)"))["rays"].fault
    assert str(fault).endswith("ended with 3 (no words); the next run tests again")
    assert kept.read("probe-other") is None


def test_a_ctrl_c_in_the_terminal_does_not_reach_it() -> None:
    # What a terminal signals is the group of the process that it runs.
    alone = "say('rays', str(os.getpgrp() == os.getpid())); say('hash grid', None)"
    found, lasting = ask(script(alone))
    assert found["rays"].fault == "True"
    assert lasting


def test_a_kept_fault_names_its_file_and_without_the_file_it_is_tested_again(
    tmp_path: Path,
) -> None:
    kept = KernelCache(tmp_path)
    crash = script("os.kill(os.getpid(), 11)")
    for _ in range(2):
        fault = str(kept_or_asked(KEY, kept, crash)["rays"].fault)
        assert fault.endswith(f"by SIGSEGV; kept in {kept.path(KEY)}: delete it to test again")
        crash = script("raise SystemExit('not asked')")
    kept.path(KEY).unlink()
    fine = script("say('hash grid', None); say('rays', None)")
    assert kept_or_asked(KEY, kept, fine) == {"hash grid": FINE, "rays": FINE}
    # A folder that keeps nothing is not named.
    file = tmp_path / "a file"
    file.touch()
    fault = kept_or_asked(KEY, KernelCache(file), script("os.abort()"))["rays"].fault
    assert str(fault).endswith("by SIGABRT; the next run tests again")


def test_what_takes_too_long_is_a_fault_that_is_not_kept(tmp_path: Path) -> None:
    hang = script("say('hash grid', None); parts[0] == 'rays' and time.sleep(60)")
    kept = KernelCache(tmp_path)
    found = kept_or_asked(KEY, kept, hang, seconds=1.5)
    assert found["hash grid"] == FINE
    assert str(found["rays"].fault).endswith("took longer than 1.5 s; the next run tests again")
    assert kept.read(KEY) is None


@pytest.mark.parametrize(
    "text",
    [
        "print('CUDA says hello'); print('{'); print('[1, 2]'); print(json.dumps(['rays', 3]))",
        "sys.stdout.buffer.write(bytes(range(256)))",
        "say('another part', None); say('rays'); print('[[]]'); print('[[[], null]]')",
        "pass",
    ],
)
def test_rubbish_is_no_answer(text: str) -> None:
    found, lasting = ask(script(text))
    for part in probe.OURS:
        assert str(found[part].fault).endswith("gave no answer")
    assert not lasting


def test_an_error_is_told_by_its_last_line() -> None:
    found, lasting = ask(script("raise RuntimeError('an illegal address')"))
    assert not lasting
    fault = str(found["rays"].fault)
    assert fault.endswith("ended with 1 (RuntimeError: an illegal address)")
    assert "\n" not in fault


@pytest.mark.parametrize("said", ["CUDA error: out of memory", "devices are busy or unavailable"])
def test_what_says_nothing_of_the_kernels_is_left_to_the_caller(tmp_path: Path, said: str) -> None:
    kept = KernelCache(tmp_path)
    found = kept_or_asked(KEY, kept, script(f"say('rays', None); say('hash grid', {said!r})"))
    assert found == {"hash grid": UNKNOWN, "rays": FINE}
    assert kept.read(KEY) is None


def test_where_no_process_can_be_started_the_caller_tests_for_itself(tmp_path: Path) -> None:
    kept = KernelCache(tmp_path)
    found = kept_or_asked(KEY, kept, lambda parts: [str(tmp_path / "no such program"), *parts])
    assert found == {"hash grid": UNKNOWN, "rays": UNKNOWN}
    assert kept.read(KEY) is None


def test_it_is_asked_once_and_a_torn_answer_again(tmp_path: Path) -> None:
    asked: list[Sequence[Part]] = []

    def command(parts: Sequence[Part]) -> list[str]:
        asked.append(list(parts))
        return script("say('hash grid', None); say('rays', 'off by 1')")(parts)

    kept = KernelCache(tmp_path)
    first = kept_or_asked(KEY, kept, command)
    assert kept_or_asked(KEY, kept, command) == first
    assert asked == [["hash grid"], ["rays"]]
    kept.path(KEY).write_bytes(kept.path(KEY).read_bytes()[:-3])
    assert kept_or_asked(KEY, kept, command) == first
    assert len(asked) == 4
    # Whole, but of another form.
    for document in (b"no json", b"[]", json.dumps([["rays", None]]).encode(), b"3"):
        kept.write(KEY, document)
        assert kept_or_asked(KEY, kept, command) == first
    assert len(asked) == 12
    assert kept_or_asked("probe-other", kept, command).keys() == first.keys()
    assert len(asked) == 14


def test_the_key_is_of_the_code_the_device_and_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    about = SimpleNamespace(name="a card", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    monkeypatch.setattr(probe, "nvrtc_version", lambda: (13, 0))
    monkeypatch.setattr(probe, "_driver", lambda: "550")
    keys = [probe._key(0, probe.OURS), probe._key(0, probe.OURS)]
    assert keys[0] == keys[1]
    monkeypatch.setattr(probe, "_driver", lambda: "560")
    keys.append(probe._key(0, probe.OURS))
    about.name = "another card"
    keys.append(probe._key(0, probe.OURS))
    monkeypatch.setattr(probe, "nvrtc_version", lambda: (13, 1))
    keys.append(probe._key(0, probe.OURS))
    monkeypatch.setattr(probe, "_PACKAGES", ("cuda",))
    keys.append(probe._key(0, probe.OURS))
    keys += [
        probe._key(0, ("hash grid",), tables)
        for tables in ((2, torch.float32), (4, torch.float32), (2, torch.float16))
    ]
    assert len(set(keys)) == 8


def test_a_verdict_refuses_the_kernels_without_launching_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = torch.device("cuda", 0)
    broken = Verdict(known=True, fault="their self-test was ended by SIGSEGV")
    for module in (cuda, rays):
        monkeypatch.setattr(module, "require_device", lambda _: None)
        monkeypatch.setattr(module, "kernels", lambda *_: pytest.fail("loaded"))
        monkeypatch.setattr(module, "fault", lambda *_: pytest.fail("launched"))
    monkeypatch.setattr(probe, "verdict", lambda *_: broken)
    for module in (cuda, rays):
        works, reason = module.load.__wrapped__(device)
        assert not works
        assert reason.endswith("are not used: their self-test was ended by SIGSEGV")
    loaded: list[object] = []
    monkeypatch.setattr(probe, "verdict", lambda *_: FINE)
    for module in (cuda, rays):
        monkeypatch.setattr(module, "kernels", lambda *given: loaded.append(given))
        assert module.load.__wrapped__(device)[0]
    assert len(loaded) == 4
    # Not known: it is tested here.
    monkeypatch.setattr(probe, "verdict", lambda *_: UNKNOWN)
    for module in (cuda, rays):
        monkeypatch.setattr(module, "fault", lambda *_: "they are off")
        assert module.load.__wrapped__(device)[1].endswith("are not used: they are off")


def test_each_kind_of_table_is_tested_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    asked: list[tuple[object, ...]] = []

    def found(index: int, parts: tuple[Part, ...], tables: probe.Tables) -> probe.Verdicts:
        asked.append((index, parts, tables))
        broken = tables[0] == 8
        return {part: Verdict(known=True, fault="off by 1" if broken else None) for part in parts}

    loaded: list[KernelSource] = []
    monkeypatch.setattr(probe, "_verdicts", found)
    monkeypatch.setattr(cuda, "require_device", lambda _: None)
    monkeypatch.setattr(cuda, "kernels", lambda source, _: loaded.append(source))
    load = cuda.load.__wrapped__
    assert load(device)[0]
    assert load(device, 4, torch.float16)[0]
    assert load(device, 8, torch.float32) == (False, "our CUDA kernels are not used: off by 1")
    assert asked == [
        (0, probe.OURS, (2, torch.float32)),
        (0, ("hash grid",), (4, torch.float16)),
        (0, ("hash grid",), (8, torch.float32)),
    ]
    assert loaded == [cuda.source(2, torch.float32), cuda.source(4, torch.float16)]


def test_the_process_tests_the_tables_that_it_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []

    def fault(device: torch.device, n_features: int, dtype: torch.dtype) -> str:
        asked.append((device, n_features, dtype))
        return "off by 1"

    monkeypatch.setattr(cuda, "fault", fault)
    monkeypatch.setattr(rays, "fault", lambda _: pytest.fail("not asked for"))
    command = probe._command(1, ("hash grid",), (8, torch.float64))
    monkeypatch.setattr(sys, "argv", ["-c", *command[3:]])
    probe.main()
    assert asked == [(torch.device("cuda", 1), 8, torch.float64)]
    assert json.loads(capsys.readouterr().out) == ["hash grid", "off by 1"]


def test_other_devices_are_not_asked_about_in_another_process() -> None:
    assert probe.verdict("rays", torch.device("cpu")) == UNKNOWN


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_the_real_process_answers_of_every_part() -> None:
    # It starts, finds our code and says why nothing can be computed here.
    found, _ = ask(lambda parts: probe._command(0, parts))
    for part in probe.OURS:
        assert "self-test failed" in str(found[part].fault)
    with pytest.raises((CudaKernelsUnavailable, AssertionError, RuntimeError)):
        probe._key(0, probe.OURS)


@pytest.mark.gpu
def test_on_a_gpu_the_process_finds_nothing_wrong() -> None:
    found, lasting = ask(lambda parts: probe._command(0, parts))
    assert found == {"hash grid": FINE, "rays": FINE}
    assert lasting


def test_signals_have_their_names() -> None:
    command = script("os.kill(os.getpid(), 9)")(["rays"])
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert str(ask(script("os.kill(os.getpid(), 9)"))[0]["rays"].fault).endswith("by SIGKILL")


def test_tiny_cuda_nn_is_asked_by_itself_and_known_by_its_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, lasting = ask(script("say('tinycudann', 'off by 1')"), parts=probe.FOREIGN)
    assert found == {"tinycudann": Verdict(known=True, fault="off by 1")}
    assert lasting
    kept = KernelCache(tmp_path / "kept")
    crash = script("os.abort()")
    for _ in range(2):
        found = kept_or_asked(KEY, kept, crash, parts=probe.FOREIGN)
        assert "was ended by SIGABRT; kept in " in str(found["tinycudann"].fault)
    # What was kept of it says nothing of ours.
    ours = kept_or_asked(KEY, kept, script("say('hash grid', None); say('rays', None)"))
    assert ours == {"hash grid": FINE, "rays": FINE}

    package = tmp_path / "a_package_built_here"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    before = probe._build_of("a_package_built_here")
    assert before
    assert probe._build_of("a_package_built_here") == before
    (package / "bindings.so").touch()  # built again, for another card
    assert probe._build_of("a_package_built_here") != before
    assert probe._build_of("no_such_package_at_all") == []


def test_a_verdict_refuses_tiny_cuda_nn_without_asking_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinycudann, "load", lambda: (SimpleNamespace(), "tinycudann is installed"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(self_test, "fault", lambda *_: pytest.fail("asked here"))
    broken = Verdict(known=True, fault="it was ended by SIGSEGV")
    monkeypatch.setattr(probe, "verdict", lambda *_: broken)
    works = tinycudann.works.__wrapped__
    device = torch.device("cuda", 0)
    assert works(device) == (False, "tinycudann is not used: it was ended by SIGSEGV")
    monkeypatch.setattr(probe, "verdict", lambda *_: FINE)
    assert works(device) == (True, "tinycudann is installed")
