"""Where a step waits for its device, on a simulated one, and that the simulation sees waits."""

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import count_launches
from core.denoiser import Conditioning
from core.discrete_schedule import DiscreteVPSchedule
from core.distillation.score.sds import eps_weighting
from core.prediction import Parametrisation, Prediction
from core.schedule import FlowSchedule
from core.teachers.stable_diffusion_xl import StableDiffusionXLTeacher
from host_kernels import HostBuilds
from nerf.transfer import to_device
from sds3d.optimize import Optimization, StepClock
from sds3d.optimize_config import FieldOptions
from sds3d.presets import generate_config
from simulated_device import DEVICE, OnDevice, simulated

SMALL: dict[str, Any] = {
    "resolutions": (8,),
    "resolution_milestones": (),
    "step_size": 0.2,
    "occupancy_resolution": 8,
    "field": FieldOptions(
        n_levels=2, log2_table_size=8, base_resolution=4, finest_resolution=8, hidden_dim=8
    ),
}


def unused(*_: object) -> Any:
    raise AssertionError("no kernel of ours is asked here")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"orientation_weight": 0.1, "normal_smoothness_weight": 0.1},
        {"table_dtype": "float16", "method": "csd", "guidance_rescale": 0.5},
        {"method": "reconstruction", "guidance_rescale": 0.5},
    ],
)
def test_a_step_waits_for_the_device_three_times_and_a_later_update_once_more(
    host_builds: HostBuilds, options: dict[str, Any]
) -> None:
    found = count_launches.count("none", host_builds, **SMALL, **options)
    # The number of samples that there are, of those that count, and what the host reads of a step.
    assert found["without"].waits == {
        "number read in nerf/cuda/march.py": 1,
        "size in nerf/rendering.py": 1,
        "copy to the host in sds3d/optimize.py": 1,
    }
    for counts in found.values():
        assert counts.ours["march_count"] == counts.ours["march_fill"] == 1
        assert counts.ours["scatter"] >= counts.ours["weigh_backward"] == 1
        assert counts.launches > sum(counts.ours.values())
    assert "remember" not in found["without"].ours
    assert found["with"].ours["remember"] == found["later"].ours["remember"] == 1
    assert found["with"].waits == found["without"].waits
    # After its warm-up the grid looks at the occupied cells only, and asks how many there are.
    assert found["later"].waits == found["without"].waits | {"size in nerf/occupancy.py": 1}


@pytest.mark.parametrize(
    ("ask", "waits"),
    [
        (lambda x: float(x.sum()), 1),
        (lambda x: bool((x > 0).any()), 1),
        (lambda x: (x > 0).nonzero(), 1),
        (lambda x: x[x > 0.5], 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), 1),
        (lambda x: x.new_tensor([1.0, 2.0]), 1),
        (lambda x: torch.ones(3).to(x.device), 1),
        (lambda x: torch.ones(3).to(x.device, non_blocking=True), 1),
        (lambda x: x.copy_(torch.ones(3)), 1),
        (lambda x: to_device(torch.ones(3), x.device), 0),
        (lambda x: x * 2.0 + torch.zeros((), device=x.device), 0),
        (lambda x: x.new_full((2,), 3.0), 0),
        (lambda x: x.index_select(0, torch.arange(2, device=x.device)), 0),
        (lambda x: x.to(torch.float64), 0),
    ],
)
def test_what_waits_is_seen_and_what_does_not_is_not(
    ask: Callable[[Tensor], object], waits: int
) -> None:
    with simulated(unused) as simulation:
        x = to_device(torch.rand(3), DEVICE)
        simulation.forget()
        ask(x)
        assert simulation.waits.total() == waits


def test_it_computes_what_the_cpu_does_and_refuses_two_devices_at_once() -> None:
    x = torch.rand(4, 3)
    with simulated(unused) as simulation:
        there = to_device(x, DEVICE).requires_grad_()
        (there @ there.T).exp().sum().backward()
        assert isinstance(there.grad, OnDevice)
        found = there.grad.held
        with pytest.raises(AssertionError, match="two devices"):
            torch.add(there.detach(), x)
        assert simulation.launches["aten.exp.default"] == 1
    here = x.clone().requires_grad_()
    (here @ here.T).exp().sum().backward()
    assert here.grad is not None
    assert torch.equal(found, here.grad)


@pytest.mark.parametrize("given", [Parametrisation.EPS, Parametrisation.V_PREDICTION])
def test_what_a_teacher_of_noise_says_is_read_without_a_wait(given: Parametrisation) -> None:
    schedule = DiscreteVPSchedule(torch.linspace(0.999, 0.005, 1000).double())
    value, x_t, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([0.2, 0.9])
    expected = Prediction(value, given, x_t, t, schedule).x0
    with simulated(unused) as simulation:
        there = [to_device(tensor, DEVICE) for tensor in (value, x_t, t)]
        schedule.alpha(there[2])  # its table is on the device from now on
        simulation.forget()
        found = Prediction(there[0], given, there[1], there[2], schedule).x0
        weight = eps_weighting(schedule, there[2])
        assert simulation.waits.total() == 0
        assert isinstance(found, OnDevice)
        assert isinstance(weight, OnDevice)
    assert torch.equal(found.held, expected)
    # At an end that is reached it must be looked, wherever the times are.
    ended = FlowSchedule()
    with simulated(unused):
        there = [to_device(tensor, DEVICE) for tensor in (value, x_t, torch.tensor([0.5, 1.0]))]
        said = Prediction(there[0], Parametrisation.EPS, there[1], there[2], ended)
        with pytest.raises(ValueError, match="cannot be read"):
            _ = said.x0
    # On the CPU times outside are found with every schedule.
    with pytest.raises(ValueError, match="cannot be read"):
        _ = Prediction(value, given, x_t, t * float("nan"), schedule).x0


def test_what_sdxl_is_told_beside_the_text_needs_no_wait() -> None:
    with simulated(unused) as simulation:
        teacher = StableDiffusionXLTeacher.__new__(StableDiffusionXLTeacher)
        teacher.image_size, teacher.device, teacher.dtype = 1024, DEVICE, torch.float16
        pooled = to_device(torch.zeros(2, 8), DEVICE)
        made = []
        for _ in range(2):
            simulation.forget()
            told = teacher.added_conditions(Conditioning(pooled_text=pooled))["added_cond_kwargs"]
            assert simulation.waits.total() == 0
            made.append(simulation.launches.total())
            sizes = told["time_ids"]
            assert isinstance(sizes, OnDevice)
            assert sizes.held.tolist() == [[1024, 1024, 0, 0, 1024, 1024]] * 2
        # At the second call nothing is made any more.
        assert made[1] < made[0]


def test_the_command_prints_its_counts(
    host_builds: HostBuilds, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = count_launches.Counts(launches=9, teacher_network=2, ours={"look": 1}, waits={"a": 3})
    monkeypatch.setattr(count_launches, "count", lambda *_: {"with": counts})
    assert count_launches.main(["--json"]) == 0
    *_, last = capsys.readouterr().out.strip().splitlines()
    assert json.loads(last) == {
        "with": {"launches": 9, "teacher_network": 2, "ours": {"look": 1}, "waits": {"a": 3}}
    }
    monkeypatch.setattr(count_launches, "system_compiler", lambda: None)
    assert count_launches.main([]) == 2


def test_it_says_in_which_file_it_waits(tmp_path: Path) -> None:
    with simulated(unused) as simulation:
        x = to_device(torch.rand(3), DEVICE)
        simulation.forget()
        float(x.sum())
    assert simulation.waits == {"number read in torch": 1}


@pytest.mark.gpu
def test_on_a_gpu_a_step_waits_no_more_often_than_on_the_simulated_device() -> None:
    config = generate_config("fast", prompt="a ball", device="cuda")
    options = dataclasses.replace(config.optimize, **SMALL)
    teacher: Any = count_launches.Even(torch.device("cuda"))
    loop = Optimization(dataclasses.replace(config, optimize=options), teacher)
    for _ in range(2):  # everything is loaded
        loop.advance(StepClock())
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop.advance(StepClock())
    finally:
        torch.cuda.set_sync_debug_mode(before)
    waits = [str(each.message) for each in caught if "synchroniz" in str(each.message)]
    assert 0 < len(waits) <= 3, waits
