"""Which teachers a worker keeps: the last two, as far as memory goes."""

import dataclasses
import json
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sds3d.events import Stage, ignore_event
from sds3d.generate import Parts
from sds3d.jobs.bench import Bench
from sds3d.jobs.service import JobService
from sds3d.jobs.states import State
from sds3d.jobs.supervisor import Supervisor
from sds3d.jobs.worker import Worker, main

WEIGHTS = {"a": 10, "b": 20, "c": 30, "large": 100, "unknown": None}


@pytest.fixture
def loads() -> list[str]:
    return []


@pytest.fixture
def bench(fakes: SimpleNamespace, loads: list[str]) -> Bench:
    """Of teachers by the weights above, on a device that has 8 x 60."""

    def make_parts(_: str) -> Any:
        def load(name: str, _device: str) -> Any:
            loads.append(name)
            return fakes.Teacher()

        return SimpleNamespace(**vars(fakes.make_parts()) | {"load_teacher": load})

    return Bench(
        make_parts,
        previews=False,
        weight_bytes=lambda name: WEIGHTS[name],
        memory_bytes=lambda _: 8 * 60,
    )


@pytest.mark.parametrize(
    ("asked", "loaded"),
    [
        ("a b a b a", "a b"),
        # The one that was used longest ago goes.
        ("a b a c a b", "a b c b"),
        # Together they would take more than may be kept.
        ("a large a large", "a large a large"),
        ("b c b c", "b c"),
        # Of what is not known nothing is kept beside another.
        ("a unknown a unknown unknown", "a unknown a unknown"),
    ],
)
def test_the_last_two_are_kept_where_they_fit(
    bench: Bench, loads: list[str], monkeypatch: pytest.MonkeyPatch, asked: str, loaded: str
) -> None:
    monkeypatch.setattr("sds3d.jobs.bench.with_loaded", lambda parts, *_: parts)
    told: list[str] = []

    def hear(event: Any) -> None:
        assert isinstance(event, Stage)
        told.append(event.name)

    for name in asked.split():
        bench.parts(name, "cpu", hear)
    assert loads == loaded.split()
    assert told == ["teacher"] * len(loads)


def test_there_are_never_two_in_memory_that_do_not_fit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sds3d.jobs.bench.with_loaded", lambda parts, *_: parts)
    held: list[int] = []
    make = bench._make_parts

    def counting(name: Any) -> Any:
        parts = make(name)
        load = parts.load_teacher

        def load_and_count(*which: Any) -> Any:
            held.append(len(bench._loaded))
            return load(*which)

        return SimpleNamespace(**vars(parts) | {"load_teacher": load_and_count})

    monkeypatch.setattr(bench, "_make_parts", counting)
    for name in ("a", "b", "c", "large", "a"):
        bench.parts(name, "cpu", ignore_event)
    assert held == [0, 1, 1, 0, 0]


def bench_with_another(parts: Parts, service: JobService) -> Bench:
    """One that keeps a teacher of other jobs, and has room for a second."""
    bench = Bench(
        lambda _: parts,
        previews=False,
        limits=service.limits,
        weight_bytes=lambda _: 1,
        memory_bytes=lambda _: 100,
    )
    bench.parts("another", "cpu", ignore_event)
    return bench


def test_a_teacher_of_other_jobs_goes_before_a_job_is_made_smaller(
    service: JobService, make_config: Any, fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = fakes.Loop()
    tries: list[int] = []

    def optimize(config: Any, teacher: Any, **how: Any) -> Any:
        tries.append(len(bench._loaded))
        if len(bench._loaded) > 1:
            raise MemoryError
        return loop(config, teacher, **how)

    made = fakes.make_parts(loop=optimize)
    bench = bench_with_another(made, service)
    job = service.submit(make_config())
    Worker(service.store, service.out, name="w", bench=bench).run(until_idle=True)
    done = service.get(job.id)
    assert (done.state, done.degraded, done.failures) == (State.DONE, None, 0)
    assert tries == [2, 1]


def test_a_teacher_of_other_jobs_goes_where_the_next_one_cannot_be_loaded_beside_it(
    service: JobService, make_config: Any, fakes: SimpleNamespace
) -> None:
    made = fakes.make_parts()
    tries: list[tuple[str, int]] = []
    alive: list[weakref.ref[Any]] = []

    def load(name: str, _device: str) -> Any:
        tries.append((name, sum(ref() is not None for ref in alive)))
        teacher = fakes.Teacher()
        alive.append(weakref.ref(teacher))
        if tries[-1] == ("toybox", 1):
            raise MemoryError
        return teacher

    bench = bench_with_another(dataclasses.replace(made, load_teacher=load), service)
    job = service.submit(make_config())
    Worker(service.store, service.out, name="w", bench=bench).run(until_idle=True)
    done = service.get(job.id)
    assert (done.state, done.degraded, done.failures) == (State.DONE, None, 0)
    # The last time neither the other nor what was read of it is in memory.
    assert tries == [("another", 0), ("toybox", 1), ("toybox", 0)]


@pytest.mark.parametrize(
    ("error", "kept", "tries"), [(MemoryError, 0, 1), (ValueError, 1, 1), (MemoryError, 1, 2)]
)
def test_a_teacher_that_cannot_be_loaded_alone_either_is_said_to_be_so(
    fakes: SimpleNamespace, error: type[Exception], kept: int, tries: int
) -> None:
    tried: list[str] = []

    def load(name: str, _device: str) -> Any:
        tried.append(name)
        if name == "a":
            return fakes.Teacher()
        raise error

    made = dataclasses.replace(fakes.make_parts(), load_teacher=load)
    bench = Bench(lambda _: made, weight_bytes=lambda _: 1, memory_bytes=lambda _: 100)
    for name in ["a"] * kept:
        bench.parts(name, "cpu", ignore_event)
    with pytest.raises(error):
        bench.parts("b", "cpu", ignore_event)
    assert tried == ["a"] * kept + ["b"] * tries
    # What another teacher judges together says nothing of this one.
    if error is MemoryError:
        assert bench.views_together() is None


@pytest.mark.parametrize(
    ("workers", "asked", "loaded"),
    [(2, "a b a b", "a b"), (2, "b c b", "b c b"), (3, "a b a b", "a b a b")],
)
def test_what_may_be_kept_is_divided_among_the_workers(
    bench: Bench, loads: list[str], monkeypatch: Any, workers: int, asked: str, loaded: str
) -> None:
    monkeypatch.setattr("sds3d.jobs.bench.with_loaded", lambda parts, *_: parts)
    one = Bench(
        bench._make_parts,
        workers=workers,
        weight_bytes=bench._weight_bytes,
        memory_bytes=bench._memory_bytes,
    )
    for name in asked.split():
        one.parts(name, "cpu", ignore_event)
    assert loads == loaded.split()


def test_a_worker_is_told_how_many_it_shares_the_device_with(
    service: JobService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "words.json"
    code = f"import json, sys; open({str(record)!r}, 'w').write(json.dumps(sys.argv[1:]))"
    with Supervisor(
        service.store, service.out, workers=3, command=(sys.executable, "-c", code)
    ) as supervisor:
        supervisor.tend()
        for slot in supervisor._slots:
            assert slot.process is not None
            slot.process.wait(60)
    words = json.loads(record.read_text())
    benches: list[Any] = []

    class Recorded:
        def __init__(self, *_: object, bench: Bench, **__: object) -> None:
            benches.append(bench)

        def run(self, _: object) -> None: ...

    monkeypatch.setattr("sds3d.jobs.worker.Worker", Recorded)
    assert main(words) == 0
    assert benches[0]._share == pytest.approx(1 / 8 / 3)


def test_what_the_embedded_teachers_weigh_is_known_and_that_two_of_them_fit_here() -> None:
    from sds3d.jobs.bench import _memory_bytes, _weight_bytes

    assert _weight_bytes("nowhere/nothing") is None
    memory = _memory_bytes("cpu")
    for name in ("toybox", "toybox-guided"):
        weight = _weight_bytes(name)
        assert weight is not None
        assert 10**6 < weight < 10**9
    assert memory is None or memory > 10**8
    fits = Bench()._fit([("toybox", "cpu"), ("toybox-guided", "cpu")])
    assert fits is (memory is not None)
    assert not Bench()._fit([("toybox", "cpu"), ("nowhere/nothing", "cpu")])
