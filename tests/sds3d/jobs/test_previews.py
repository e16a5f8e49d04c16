"""Pictures of the growing object: affordable, whole, and without a trace in the run itself."""

import io
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sds3d.config import GenerateConfig
from sds3d.jobs import running
from sds3d.jobs.bench import Bench
from sds3d.jobs.limits import LimitsConfig
from sds3d.jobs.previews import PICTURE, SIDES, VIEWS, Previewer, Ration
from sds3d.jobs.service import JobService
from sds3d.jobs.states import State
from sds3d.jobs.worker import Worker
from sds3d.optimize import Optimization, optimize


def _service(fakes: SimpleNamespace, out: Path, fields: list[Any], *, previews: bool) -> JobService:
    """A service whose one job was worked on by the real loop; `fields` gets the field's state."""

    def write_files(optimized: Any, *_: Any) -> Any:
        fields.append(optimized.particles[0].state_dict())
        return {"mesh": {}, "iso_iou": 1.0, "seconds": {}}

    parts = fakes.make_parts(loop=optimize, teacher=fakes.GreyTeacher(), write_files=write_files)
    limits = LimitsConfig(min_free_bytes=0)
    service = JobService(out, limits=limits)
    config = GenerateConfig(prompt="a mushroom", device="cpu", optimize=fakes.tiny_options)
    job = service.submit(config)
    bench = Bench(lambda _: parts, previews=previews, limits=limits)
    Worker(service.store, out, name="w", bench=bench).run_next()
    assert service.get(job.id).state is State.DONE, service.get(job.id).reason
    return service


def test_a_run_with_previews_ends_with_the_bits_of_one_without(
    fakes: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At every step, whatever it costs.
    monkeypatch.setattr(running, "Ration", lambda: Ration(seconds=1e-6, share=1e9))
    fields: list[Any] = []
    with (
        _service(fakes, tmp_path / "with", fields, previews=True) as seen,
        _service(fakes, tmp_path / "without", fields, previews=False) as unseen,
    ):
        (job,), (other,) = seen.jobs(), unseen.jobs()
        assert unseen.picture(other) is None
        picture = seen.picture(job)
        assert picture is not None
        events = seen.follow(job).events
        # From four sides, side by side, and something to be seen in it.
        pixels = np.asarray(Image.open(io.BytesIO(picture.read_bytes())))
        assert pixels.shape == (SIDES[0], VIEWS * SIDES[0], 3)
        assert all(part.std() > 5 for part in np.split(pixels, VIEWS, axis=1))
        assert not list(picture.parent.glob(f".{PICTURE}*"))
    seconds = [event["seconds"] for event in events if event["event"] == "preview"]
    assert len(seconds) == 4
    assert all(0 < value < 60 for value in seconds)
    first, second = fields
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_at_its_step_a_picture_is_taken_whatever_it_costs(
    fakes: SimpleNamespace, tmp_path: Path
) -> None:
    config = GenerateConfig(prompt="a mushroom", device="cpu", optimize=fakes.tiny_options)
    taken: list[int] = []
    dear = Ration(seconds=1e9, share=1e-9)
    show = Previewer(tmp_path, lambda *_: taken.append(loop.step), dear, always_at=3)
    loop = Optimization(config, fakes.GreyTeacher())
    for step in (1, 2, 3, 4):
        loop.step = step
        show(loop)
    assert taken == [3]


@pytest.mark.parametrize("cost", [0.01, 0.19, 0.5, 3.0])
def test_pictures_take_at_most_a_tenth_of_the_time_and_come_as_often_as_that_allows(
    cost: float,
) -> None:
    now = [0.0]
    ration = Ration(now=lambda: now[0])
    spent, taken = 0.0, []
    while now[0] < 200:
        if ration.is_due():
            now[0] += cost
            ration.count(cost)
            spent += cost
            taken.append(now[0])
            if len(taken) > 1:  # what the first costs cannot be known before
                assert spent <= 0.1 * now[0] + 1e-9
        now[0] += 0.05
    assert len(taken) >= 0.8 * 200 / max(2.0, 10 * cost)
    assert all(later - earlier >= 2.0 for earlier, later in itertools.pairwise(taken))


def test_pictures_that_are_slow_become_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sds3d.jobs import previews

    sides: list[int] = []

    def slow(_: Any, side: int) -> np.ndarray:
        sides.append(side)
        now[0] += 1.0
        return np.zeros((side, side, 3), dtype=np.uint8)

    now = [0.0]
    monkeypatch.setattr(previews, "_pixels", slow)
    show = previews.Previewer(tmp_path, lambda *_: None, Ration(now=lambda: now[0]))
    loop: Any = SimpleNamespace(step=1)
    for _ in range(100):
        now[0] += 1.0
        show(loop)
    # The first is small whatever it takes, and says nothing of the next.
    assert sides[:4] == [SIDES[-1], SIDES[0], SIDES[-1], SIDES[-1]]


@pytest.mark.parametrize(
    ("cost_at_128", "side"), [(0.1, 128), (0.19, 128), (0.25, 96), (0.35, 96), (0.5, 64), (0.8, 64)]
)
def test_pictures_become_smaller_before_they_become_rarer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost_at_128: float, side: int
) -> None:
    """Each costs by its pixels; a step takes 50 ms."""
    from sds3d.jobs import previews

    taken: list[tuple[float, int]] = []
    now, spent = [0.0], [0.0]

    def draw(_: Any, side: int) -> np.ndarray:
        cost = cost_at_128 * (side / 128) ** 2
        now[0] += cost
        spent[0] += cost
        taken.append((now[0], side))
        return np.zeros((side, side, 3), dtype=np.uint8)

    monkeypatch.setattr(previews, "_pixels", draw)
    show = previews.Previewer(tmp_path, lambda *_: None, Ration(now=lambda: now[0]))
    loop: Any = SimpleNamespace(step=1)
    while now[0] < 120:
        now[0] += 0.05
        show(loop)
        if len(taken) > 2:
            assert spent[0] <= 0.1 * now[0] + 1e-9
    settled = [at for at, s in taken[3:] if s == side]
    assert len(settled) == len(taken) - 3 > 40
    gaps = [later - earlier for earlier, later in itertools.pairwise(settled)]
    assert 2.0 <= min(gaps) <= max(gaps) <= 2.3
