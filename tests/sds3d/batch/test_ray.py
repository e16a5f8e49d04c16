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
from sds3d.jobs.limits import LimitsConfig
from sds3d.jobs.running import Bench
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


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each."""
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
    names = ["red", "once deadly", "faulty", "greedy", "deadly", "blue", "green", "white"]
    items = [{"prompt": f"a {name} mushroom"} for name in names]
    items += [{"prompt": "a hamburger"}, {"prompt": "a slow mushroom", "steps": 100_000}]
    prompts = tmp_path / "list.jsonl"
    prompts.write_text("\n".join(map(json.dumps, items)))
    out = tmp_path / "made"
    words = ["batch", str(prompts), "--out", str(out), "--steps", "20", "--preset", "fast"]
    words += ["--ray", cluster.address, "--workers", "2", "--device", "cpu", "--timeout", "4"]
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main([*words, "--json"]) == 3
    assert signal.getsignal(signal.SIGTERM) == before
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rows] == list(range(1, 11))
    assert [row["outcome"] for row in rows] == [
        *["ok"] * 4, "failed", *["ok"] * 3, "failed", "timeout",
    ]  # fmt: skip
    assert [row["failures"] for row in rows] == [0, 1, 1, 0, 2, 0, 0, 0, 0, 0]
    assert "1 instead of 2 views" in rows[3]["degraded"]
    assert rows[4]["error"] == "WorkerDied"
    assert "time 2 of 2" in rows[4]["reason"]
    assert "its worker process has died" in rows[4]["reason"]
    assert "nearest: mushroom" in rows[8]["reason"]
    assert "longer than 4 s" in rows[9]["reason"]
    for row in rows:
        if row["outcome"] == "ok":
            assert RunFolder.open(out / row["folder"]).verify() == []
    summary = events[-1]
    assert (summary["ok"], summary["failed"], summary["unfinished"]) == (7, 3, 0)
    assert (out / "index.html").is_file()
    assert not list(out.glob(".sds3d-batch-*"))

    # Both nodes had their part in it, and what died or was faulty was begun again.
    begun = _nodes(tmp_path)
    assert len({node for node, _ in begun}) == 2
    for name, times in (("once deadly", 2), ("faulty", 2), ("greedy", 2), ("deadly", 2)):
        assert [prompt for _, prompt in begun].count(f"a {name} mushroom") == times


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
        steps=80,
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
