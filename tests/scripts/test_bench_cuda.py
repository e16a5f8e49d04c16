"""scripts/bench_cuda.py: what it says without a GPU, and that each part runs, small, on the CPU."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import bench_cuda
from nerf.hash_grid import HashGridConfig

SMALL = bench_cuda.Setting(
    device=torch.device("cpu"),
    repeats=2,
    points=(256,),
    grid=HashGridConfig(n_levels=2, log2_table_size=8, base_resolution=4),
    hidden_dim=8,
    side=8,
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_so_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_cuda.main(["--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "torch finds no CUDA device: there is nothing to time here\n"


def test_the_parts_are_those_of_the_command_line() -> None:
    assert tuple(bench_cuda.BENCHES) == bench_cuda.PARTS


def test_encoding_mlp_and_render_are_timed_for_each_way() -> None:
    rows = [
        row for part in ("encoding", "mlp", "render") for row in bench_cuda.BENCHES[part](SMALL)
    ]
    assert len(rows) == 2 * 2 * 2 + 2 + 2
    assert all(row.ms > 0 for row in rows)
    errors = [row.error for row in rows if row.error is not None]
    assert len(errors) == 4
    assert max(errors) < 1e-5
    assert json.dumps([bench_cuda.asdict(row) for row in rows])
    assert "error" in bench_cuda.line_of(rows[0], 100.0)


def test_a_step_asks_the_teacher_and_moves_the_field() -> None:
    asked: list[torch.Size] = []

    def teacher(device: torch.device) -> Callable[[Tensor], Tensor]:
        def ask(latents: Tensor) -> Tensor:
            asked.append(latents.shape)
            return torch.zeros_like(latents)

        return ask

    rows = list(bench_cuda.bench_unet(SMALL, teacher))
    assert [row.what for row in rows] == [
        "teacher alone",
        "step, numba float32",
        "step, torch float32",
    ]
    assert len(asked) == 3 * 4
    assert set(asked) == {torch.Size([1, 4, 64, 64])}


def test_rays_are_points_in_order_along_lines_in_the_cube() -> None:
    points = bench_cuda.cloud(256, "rays", torch.device("cpu")).view(-1, 64, 3)
    steps = points.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=0, atol=1e-6)
    assert 0 <= points.min() <= points.max() <= 1
