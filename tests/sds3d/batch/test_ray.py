"""Batches on a Ray cluster of two nodes on this machine, with actors of fakes."""

import dataclasses
import functools
import importlib.metadata
import json
import signal
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sds3d import cli
from sds3d.batch import run as batch
from sds3d.batch.config import BatchConfig
from sds3d.batch.ray_cluster import Share, divide
from sds3d.batch.ray_run import RayWorkers
from sds3d.batch.ray_worker import RayWorker, Ready
from sds3d.batch.run import BatchInterrupted, run_batch
from sds3d.config import GenerateConfig
from sds3d.errors import BadInput, ConfigError
from sds3d.events import Event, Item, Summary, ignore_event
from sds3d.jobs.bench import Bench
from sds3d.jobs.limits import LimitsConfig
from sds3d.jobs.states import State
from sds3d.jobs.store import Store
from sds3d.optimize_config import OptimizeConfig
from sds3d.runs import RunFolder

FAKES = Path(__file__).with_name("actor_with_fakes.py")


def _make_bench_of(marks: Path) -> Callable[[], Bench]:
    """`actor_with_fakes.make_bench` in a form that travels: an actor cannot import a test."""
    path = str(FAKES)

    def make() -> Any:
        import importlib.util

        spec = importlib.util.spec_from_file_location("actor_with_fakes", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.make_bench(marks)

    return make


# --- on a cluster ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each; one of them is lost in the last test that has them."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'sds3d[ray]'")
    from ray.cluster_utils import Cluster

    quick = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 4,
    }
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": quick}
    made = Cluster(initialize_head=True, connect=False, head_node_args=head)
    try:
        made.add_node(num_cpus=1)
        yield made
    finally:
        made.shutdown()


def _nodes(marks: Path) -> list[tuple[str, str]]:
    """The node and the prompt of every item that was begun."""
    path = marks / "nodes"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_cluster_works_off_a_list_in_which_everything_happens(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    make_bench = _make_bench_of(tmp_path)
    monkeypatch.setattr(batch, "run_batch", functools.partial(run_batch, make_bench=make_bench))
    monkeypatch.setattr("sds3d.batch.ray_run.OVERTIME_SECONDS", 3.0)
    expected = {
        "a hanging mushroom": ("ok", 1),
        "a slow mushroom": ("timeout", 0),
        "a red mushroom": ("ok", 0),
        "a faulty mushroom": ("ok", 1),
        "a greedy mushroom": ("ok", 0),
        "a deadly mushroom": ("failed", 2),
        "a finely mushroom": ("ok", 0),
        "a hamburger": ("failed", 0),
        "a blue mushroom": ("ok", 0),
    }
    prompts = tmp_path / "list.jsonl"
    steps = {"a slow mushroom": {"steps": 100_000}}
    prompts.write_text("\n".join(json.dumps({"prompt": p, **steps.get(p, {})}) for p in expected))
    out = tmp_path / "made"
    words = ["batch", str(prompts), "--out", str(out), "--steps", "20", "--preset", "fast"]
    words += ["--ray", cluster.address, "--workers", "2", "--device", "cpu", "--timeout", "5"]
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main([*words, "--json"]) == 3
    assert signal.getsignal(signal.SIGTERM) == before
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    lines = (out / "manifest.jsonl").read_text().splitlines()
    rows = {row["prompt"]: row for row in map(json.loads, lines)}
    assert {p: (row["outcome"], row["failures"]) for p, row in rows.items()} == expected
    assert list(rows) == list(expected)
    assert "1 instead of 2 views" in rows["a greedy mushroom"]["degraded"]
    assert rows["a finely mushroom"]["degraded"].startswith("a mesh from a grid of 64 cells")
    deadly = rows["a deadly mushroom"]
    assert deadly["error"] == "WorkerDied"
    assert "time 2 of 2" in deadly["reason"]
    assert "its worker process has died" in deadly["reason"]
    assert "nearest: mushroom" in rows["a hamburger"]["reason"]
    assert "longer than 5 s" in rows["a slow mushroom"]["reason"]
    for row in rows.values():
        if row["outcome"] == "ok":
            assert RunFolder.open(out / row["folder"]).verify() == []
    summary = events[-1]
    assert (summary["ok"], summary["failed"], summary["unfinished"]) == (6, 3, 0)
    assert (out / "index.html").is_file()
    assert not list(out.glob(".sds3d-batch-*"))

    # Both nodes had their part in it, and what died or was faulty was begun again.
    begun = _nodes(tmp_path)
    assert len({node for node, _ in begun}) == 2
    for name in ("hanging", "faulty", "greedy", "deadly", "finely"):
        assert [prompt for _, prompt in begun].count(f"a {name} mushroom") == 2
    # For a smaller mesh nothing is optimised again.
    made = (tmp_path / "steps").read_text().splitlines()
    assert (made.count("a finely mushroom"), made.count("a greedy mushroom")) == (1, 2)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_lost_node_costs_a_try_and_a_stop_keeps_what_is_made(
    cluster: Any, tmp_path: Path
) -> None:
    prompts, out = tmp_path / "list.txt", tmp_path / "made"
    prompts.write_text("\n".join(f"a mushroom number {n}" for n in range(6)))
    config = BatchConfig(
        prompts=str(prompts),
        out=out,
        ray=cluster.address,
        workers=2,
        steps=40,
        preset="fast",
        device="cpu",
    )
    make_bench = _make_bench_of(tmp_path)

    # Stopped after the first item.
    heard: list[Event] = []
    with pytest.raises(BatchInterrupted) as stopped:
        run_batch(
            config,
            on_event=heard.append,
            should_stop=lambda: any(isinstance(event, Item) for event in heard),
            make_bench=make_bench,
        )
    assert stopped.value.exit_code == 130
    summary = next(event for event in heard if isinstance(event, Summary))
    made = summary.ok
    assert 1 <= made < 6
    assert made + summary.unfinished == 6

    # The same again, and a node is lost while it is at an item.
    (lost,) = cluster.worker_nodes
    already = len(_nodes(tmp_path))

    def lose_the_node() -> bool:
        at_it = [node for node, _ in _nodes(tmp_path)[already:]]
        if lost.node_id in at_it and cluster.worker_nodes:
            cluster.remove_node(lost, allow_graceful=False)
        return False

    heard.clear()
    done = run_batch(
        config, on_event=heard.append, should_stop=lose_the_node, make_bench=make_bench
    )
    assert not cluster.worker_nodes
    assert (done.ok, done.skipped, done.failed, done.unfinished) == (6 - made, made, 0, 0)
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert sum(row["failures"] for row in rows) == 1
    (tried_again,) = [row for row in rows if row["failures"]]
    where = [node for node, prompt in _nodes(tmp_path)[already:] if prompt == tried_again["prompt"]]
    assert where[0] == lost.node_id
    assert lost.node_id not in where[1:]
    assert len(where) == 2
    for row in rows:
        assert RunFolder.open(out / row["folder"]).verify() == []


# --- what cannot be used ---------------------------------------------------------------------


class _Mute(socketserver.BaseRequestHandler):
    """Takes a connection, says what Ray would not, and leaves."""

    def handle(self) -> None:
        self.request.recv(1024)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_a_cluster_that_is_not_there_ends_with_2_and_one_line(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'sds3d[ray]'")
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("a red mushroom")
    with socket.socket() as free:
        free.bind(("0.0.0.0", 0))
        closed = f"127.0.0.1:{free.getsockname()[1]}"
    with socketserver.TCPServer(("0.0.0.0", 0), _Mute) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for address, reason in (
            (closed, "refused"),
            (f"127.0.0.1:{server.server_address[1]}", "is no Ray cluster"),
            ("ray://somewhere:10001", "give HOST:PORT"),
            ("somewhere", "give HOST:PORT"),
            ("", "give HOST:PORT"),
        ):
            assert cli.main(["batch", "list.txt", "--ray", address]) == 2
            out, err = capsys.readouterr()
            assert out == ""
            assert reason in err
            assert len(err.splitlines()) == 1
        server.shutdown()
    assert not list(tmp_path.rglob("*.glb"))


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    prompts = tmp_path / "list.txt"
    prompts.write_text("a red mushroom")
    words = ["batch", str(prompts), "--out", str(tmp_path / "made"), "--ray", "local"]
    assert cli.main(words) == 2
    assert "pip install 'sds3d[ray]'" in capsys.readouterr().err


def test_a_machine_with_another_version_or_another_folder_ends_the_batch(tmp_path: Path) -> None:
    config = BatchConfig(prompts="list.txt", out=tmp_path, ray="auto")
    mine = importlib.metadata.version("sds3d")
    for version, sees_folder, reason in (
        ("0.0.1", True, "ada has sds3d 0.0.1 and this machine"),
        (mine, False, "ada does not see .*: with --ray, --out must be a folder that all"),
    ):
        ready = Ready(host="ada", version=version, sees_folder=sees_folder)
        with Store(tmp_path / "jobs.sqlite3") as store:
            workers = RayWorkers(config, store, workers=1, on_event=ignore_event)
            with pytest.raises(BadInput, match=reason):
                workers.welcome(ready)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"gpus_per_worker": 0.5}, "--gpus-per-worker divides a Ray cluster"),
        ({"cpus_per_worker": 2.0}, "--cpus-per-worker divides a Ray cluster"),
        ({"ray": "local", "gpus_per_worker": 1.5}, "a whole number, or a part"),
        ({"ray": "local", "gpus_per_worker": -1.0}, "--gpus-per-worker is -1"),
        ({"ray": "local", "gpus_per_worker": 0.5, "device": "cpu"}, "no use with --device cpu"),
    ],
)
def test_shares_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        BatchConfig(prompts="list.txt", **options)


# --- how a cluster is divided ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "gpus"),
    [
        ([(8, 0)], 1, 8, 0),
        ([(8, 0)], 3, 2, 0),
        ([(1, 0), (1, 0)], 2, 1, 0),
        ([(2, 0), (6, 0)], 2, 3, 0),
        ([(0, 0), (4, 0)], 2, 2, 0),
        ([(1, 0)], 3, 0.3333, 0),
        ([(8, 1)], 1, 8, 1),
        ([(8, 1)], 4, 2, 0.25),
        ([(8, 4)], 2, 4, 1),
        ([(8, 2)], 3, 2, 0.5),
        ([(64, 0), (8, 2)], 2, 4, 1),
        ([(8, 1), (8, 1)], 8, 2, 0.25),
    ],
)
def test_every_worker_has_room_with_its_share(
    nodes: list[tuple[float, float]], workers: int, cpus: float, gpus: float
) -> None:
    share = divide(nodes, workers)
    assert (share.cpus, share.gpus) == (cpus, gpus)
    assert share.room >= workers
    # The next larger number of processors leaves somebody out.
    if cpus >= 1:
        assert divide(nodes, workers, cpus=cpus + 1, gpus=gpus).room < workers


def test_a_share_of_the_users_own_may_leave_no_room() -> None:
    assert divide([(8, 1)], 4, gpus=0.5) == Share(cpus=4.0, gpus=0.5, room=2)
    assert divide([(8, 0)], 1, gpus=1.0).room == 0
    assert divide([(8, 0)], 1, cpus=16.0).room == 0
    # Two parts of different GPUs make no third.
    assert divide([(8, 2)], 3, cpus=1.0, gpus=0.6).room == 2
    assert divide([(8, 4)], 2, cpus=1.0, gpus=2.0).room == 2
    assert divide([(8, 1)], 2, use_gpus=False) == Share(cpus=4.0, gpus=0.0, room=2)


# --- actors that hang or never come up, on a cluster that is made up -------------------------


class _LostError(Exception):
    """What stands for Ray's own error here."""


class _MadeUpRay:
    """Ray as `RayWorkers` knows it: its answers are those in `answers`, by the name of a call."""

    exceptions = SimpleNamespace(RayError=_LostError)

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.made = self.killed = 0

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 4.0}}]

    def remote(self, **_: Any) -> Any:
        return lambda _class: SimpleNamespace(options=lambda **_: self._class())

    def _class(self) -> Any:
        def make(*_: Any) -> Any:
            self.made += 1
            calls = ("ready", "look", "work", "end")
            return SimpleNamespace(
                **{name: SimpleNamespace(remote=lambda *_, n=name: n) for name in calls}
            )

        return SimpleNamespace(remote=make)

    def wait(self, refs: list[str], **_: Any) -> tuple[list[str], list[str]]:
        return [ref for ref in refs if ref in self.answers], []

    def get(self, ref: str, **_: Any) -> Any:
        answer = self.answers.get(ref, _LostError("no answer"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, _: Any) -> None:
        self.killed += 1

    def shutdown(self) -> None:
        pass


_HERE = Ready(host="ada", version=importlib.metadata.version("sds3d"), sees_folder=True)


@pytest.mark.parametrize(
    ("silence_seconds", "overtime_seconds", "error", "reason"),
    [
        (-1.0, 1e9, "WorkerDied", "no sign of life"),
        (1e9, -1e9, "Timeout", "longer than 1000 s and hung"),
    ],
)
def test_an_actor_that_hangs_is_replaced_and_its_item_tried_by_another(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    silence_seconds: float,
    overtime_seconds: float,
    error: str,
    reason: str,
) -> None:
    def patch(name: str, value: float) -> None:
        monkeypatch.setattr(f"sds3d.batch.ray_run.{name}", value)

    patch("REPORT_SECONDS", 0.0)
    ray = _MadeUpRay(ready=_HERE)
    monkeypatch.setattr("sds3d.batch.ray_run.join_cluster", lambda _: ray)
    config = BatchConfig(prompts="list.txt", out=tmp_path, ray="auto")
    with Store(tmp_path / "jobs.sqlite3") as store:
        job = store.submit(_config(), max_failures=2, timeout_seconds=1000.0)
        with RayWorkers(config, store, workers=1, on_event=ignore_event) as workers:
            workers.start()
            for failures, state in ((1, State.QUEUED), (2, State.FAILED)):
                patch("STALE_SECONDS", 1e9)
                patch("OVERTIME_SECONDS", 1e9)
                _tend_until(workers, lambda: store.get(job.id).state is State.RUNNING)
                patch("STALE_SECONDS", silence_seconds)
                patch("OVERTIME_SECONDS", overtime_seconds)
                _tend_until(workers, lambda: store.get(job.id).state is not State.RUNNING)
                row = store.get(job.id)
                assert (row.state, row.error, row.failures) == (state, error, failures)
                assert row.reason is not None
                assert reason in row.reason
                assert f"time {failures} of 2" in row.reason
                # The one that hung is no more, and each try was another's.
                assert (ray.killed, ray.made) == (failures, failures)
            assert workers.trouble is None
        assert store.get(job.id).worker is None
    assert not list(tmp_path.glob(".sds3d-batch-*"))


def _tend_until(workers: RayWorkers, condition: Callable[[], bool]) -> None:
    for _ in range(10):
        if not condition():
            workers.tend()
    assert condition()


def test_actors_that_never_come_up_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = _LostError("The actor died because of an error raised in its creation task, x\nNo disk")
    monkeypatch.setattr("sds3d.batch.ray_run.join_cluster", lambda _: _MadeUpRay(ready=lost))
    monkeypatch.setattr("sds3d.batch.ray_run.MOST_BACKOFF_SECONDS", 0.0)
    config = BatchConfig(prompts="list.txt", out=tmp_path, ray="auto")
    with Store(tmp_path / "jobs.sqlite3") as store:
        job = store.submit(_config())
        with RayWorkers(config, store, workers=1, on_event=ignore_event) as workers:
            workers.start()
            _tend_until(workers, lambda: workers.trouble is not None)
            assert workers.trouble == "a worker cannot start on the cluster: No disk"
        assert store.get(job.id).failures == 0


# --- the actor's own part, without Ray -------------------------------------------------------


@pytest.fixture
def make_actor(
    fakes: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RayWorker]:
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "1")

    def make(loads: list[str] | None = None, **parts: Any) -> RayWorker:
        made = fakes.make_parts(**parts)

        def load_teacher(*which: Any) -> Any:
            if loads is not None:
                loads.append(which[0])
            return made.load_teacher(*which)

        counted = dataclasses.replace(made, load_teacher=load_teacher)
        limits = LimitsConfig(min_free_bytes=0)
        return RayWorker(
            str(tmp_path), 1, lambda: Bench(lambda _: counted, previews=False, limits=limits)
        )

    return make


def _config(steps: int = 10, **fields: Any) -> GenerateConfig:
    options = OptimizeConfig(steps=steps)
    return GenerateConfig(prompt="a red mushroom", device="cpu", optimize=options, **fields)


def test_an_actor_loads_its_teacher_once(make_actor: Callable[..., RayWorker]) -> None:
    loads: list[str] = []
    actor = make_actor(loads)
    rows = [actor.work(_config(seed=seed), None) for seed in (1, 2, 1)]
    assert [row.state for row in rows] == [State.DONE] * 3
    assert [row.reused for row in rows] == [False, False, True]
    assert loads == ["toybox"]
    assert actor.look() is None


def test_an_actor_tells_how_far_it_is_and_ends_with_a_checkpoint(
    make_actor: Callable[..., RayWorker], fakes: SimpleNamespace, tmp_path: Path
) -> None:
    actor = make_actor(loop=fakes.Loop(step_seconds=0.01))
    rows: list[Any] = []
    thread = threading.Thread(target=lambda: rows.append(actor.work(_config(100_000), None)))
    thread.start()
    patience = time.monotonic() + 30
    while ((seen := actor.look()) is None or seen[0] == 0) and time.monotonic() < patience:
        time.sleep(0.02)
    actor.end()
    thread.join(30)
    assert seen is not None
    assert seen[0] > 0
    assert seen[1] == 100_000
    (row,) = rows
    assert (row.state, row.failures, row.reason) == (State.QUEUED, 0, None)
    assert RunFolder.open(tmp_path / row.folder).checkpoint.exists()


def test_an_actor_says_whether_it_shares_the_folder(
    make_actor: Callable[..., RayWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sds3d.batch.ray_worker.FOLDER_SECONDS", 0.1)
    actor = make_actor()
    assert not actor.ready("token").sees_folder
    (tmp_path / "token").touch()
    ready = actor.ready("token")
    assert ready.sees_folder
    assert ready.version == importlib.metadata.version("sds3d")
