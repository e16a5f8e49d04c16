"""scripts/bench_cuda.py: what it says without a GPU, and that each part runs, small, on the CPU."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench_cuda
from cuda_bench import fields, steps
from cuda_bench.measure import OUT_OF_MEMORY, Row, Setting, smoke, timed
from cuda_bench.networks import Size, UNet, make_unet, make_vae, vae_dtype
from nerf.hash_grid import HashGridConfig, reference, tinycudann

CPU = torch.device("cpu")
SMALL = smoke(Setting(device=CPU))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_so_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_cuda.main(["--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "torch finds no CUDA device: there is nothing to time here\n"


def test_the_cpu_is_for_smoke_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_cuda.main(["--device", "cpu"]) == 2
    assert "--smoke" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench_cuda.main(["--only", "triton"])


def test_the_parts_are_those_of_the_command_line() -> None:
    assert tuple(bench_cuda.BENCHES) == bench_cuda.PARTS


def test_encoding_mlp_and_render_are_timed_for_each_way() -> None:
    parts: tuple[bench_cuda.Part, ...] = ("encoding", "mlp", "render")
    rows = [row for part in parts for row in bench_cuda.BENCHES[part](SMALL)]
    assert len(rows) == 2 * 3 * 2 + 3 + 3
    assert all(row.ms is not None and row.ms > 0 for row in rows)
    errors = {row.what: row.error for row in rows if row.error is not None}
    assert len(errors) == 3
    assert errors["forward, numba float32"] < 1e-5
    assert 1e-5 < errors["forward, numba float32 read as float16"] < 1e-3
    assert "error" in bench_cuda.line_of(rows[0], 100.0)


def fake_unet(asked: list[torch.Size]) -> Callable[[Size, Setting], UNet]:
    def make(size: Size, setting: Setting) -> UNet:
        def ask(latents: Tensor) -> Tensor:
            asked.append(latents.shape)
            return torch.zeros_like(latents)

        return UNet(nn.Linear(1, 1), ask)

    return make


def test_a_step_asks_the_teacher_and_is_told_as_a_multiple_of_it() -> None:
    asked: list[torch.Size] = []
    rows = list(steps.bench_unet(SMALL, fake_unet(asked)))
    assert [row.what for row in rows] == [
        name
        for size in ("sd21", "sdxl")
        for name in (
            f"{size} alone",
            f"{size} step, numba float32",
            f"{size} step, numba float32 read as float16",
            f"{size} step, torch float32",
            f"{size} alone, by graphs",
        )
    ]
    assert set(asked) == {torch.Size([1, 4, 16, 16])}
    for row in rows:
        if "step" in row.what:
            assert row.over_teacher is not None
            assert row.over_teacher > 1
        if "graphs" in row.what:
            assert row.failed == "its network learns"
            assert row.ms is None


def test_pictures_go_through_the_autoencoder_with_and_without_a_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "ways", lambda device: [next(fields.ways(device))])
    setting = replace(SMALL, repeats=1)
    asked: list[torch.Size] = []
    rows = list(steps.bench_512(setting, fake_unet(asked)))
    assert [row.what.split(",")[0] for row in rows] == [
        "field alone",
        *["sd21 and autoencoder alone", "sd21 step"],
        *["sdxl and autoencoder alone", "sdxl step"],
    ]
    assert set(asked) == {torch.Size([1, 4, 4, 4])}  # an eighth of 32 pixels
    assert all(row.failed is None for row in rows)


def test_a_step_with_a_field_moves_it_by_what_comes_through_the_autoencoder() -> None:
    way = next(fields.ways(CPU))
    step = steps.ImageStep(
        SMALL, way=way, unet=fake_unet([])("sd21", SMALL), encode=make_vae("sd21", SMALL)
    )
    assert step.field is not None
    before = step.field.head.weight.detach().clone()
    step()
    assert not torch.equal(step.field.head.weight, before)


@pytest.mark.parametrize("size", ["sd21", "sdxl"])
def test_the_networks_have_the_published_families_inputs(size: Size) -> None:
    torch.manual_seed(0)
    unet = make_unet(size, SMALL)
    found = unet.ask(torch.randn(1, 4, 16, 16))
    assert found.shape == (1, 4, 16, 16)
    assert found.isfinite().all()
    assert not any(weight.requires_grad for weight in unet.network.parameters())


def test_memory_that_ends_is_a_row_and_other_errors_are_not() -> None:
    def shortage() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    row = timed(SMALL, shortage, part="512", what="a step", points=7)
    assert row == Row(part="512", what="a step", points=7, failed=OUT_OF_MEMORY)
    assert bench_cuda.line_of(row, 1.0).endswith(OUT_OF_MEMORY)
    alone = Row(part="512", what="alone", points=7, ms=2.0, peak_gib=1.5)
    assert row.beside(alone).over_teacher is None
    step = replace(row, ms=2.2, peak_gib=2.0, failed=None).beside(alone)
    assert step.over_teacher == pytest.approx(1.1)
    assert step.nerf_memory == pytest.approx(0.25)
    assert "1.10 x teacher   2.00 GiB (25% beyond the teacher's)" in bench_cuda.line_of(step, 1.0)
    with pytest.raises(KeyError):
        timed(SMALL, lambda: {}["no"], part="512", what="a step", points=7)


def test_a_part_that_fails_keeps_the_others_and_the_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(setting: Setting) -> Iterator[Row]:
        yield Row(part="render", what="one", points=1, ms=1.0)
        raise RuntimeError("an illegal address\nand more")

    def fine(setting: Setting) -> Iterator[Row]:
        assert setting.small
        yield Row(part="mlp", what="two", points=2, ms=2.0)

    monkeypatch.setattr(bench_cuda, "BENCHES", {"render": broken, "mlp": fine})
    words = ["--smoke", "--device", "cpu", "--json", "--only", "render", "mlp"]
    assert bench_cuda.main(words) == 1
    out, err = capsys.readouterr()
    document = json.loads(out.splitlines()[-1])
    assert document.keys() == {"device", "torch", "smoke", "copy_gb_s", "rows", "failed"}
    assert [row["what"] for row in document["rows"]] == ["one", "two"]
    assert document["rows"][0].keys() == asdict(Row(part="", what="", points=0)).keys()
    assert document["smoke"] is True
    assert document["failed"] == {"render": "RuntimeError: an illegal address"}
    assert "render failed" in err


def test_the_toybox_step_and_a_whole_run_go_through_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "ways", lambda device: [next(fields.ways(device))])
    setting = replace(SMALL, repeats=1, out=tmp_path)
    rows = list(steps.bench_toybox(setting))
    graphs = [row for row in rows if "graphs" in row.what]
    assert len(rows) == 2 * len(graphs) == 2
    assert all(str(row.failed).endswith("there are no CUDA graphs on the cpu") for row in graphs)
    total, optimize = steps.bench_run(setting)
    assert total.ms is not None
    assert optimize.ms is not None
    assert total.ms > optimize.ms > 0


def test_tiny_cuda_nn_is_timed_in_its_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    config = HashGridConfig(n_levels=2, log2_table_size=8, base_resolution=4)
    made: list[tuple[int, dict[str, Any], torch.dtype]] = []

    class Encoding(nn.Module):
        def __init__(self, n: int, settings: dict[str, Any], dtype: torch.dtype) -> None:
            super().__init__()
            made.append((n, settings, dtype))
            self.params = nn.Parameter(torch.randn(config.n_parameters))

        def forward(self, points: Tensor) -> Tensor:
            return reference.encode(points, self.params.half().float(), config).half()

    monkeypatch.setattr(tinycudann, "load", lambda: (SimpleNamespace(Encoding=Encoding), "here"))
    way = fields.Way(
        name="tinycudann float16", backend=None, table=torch.float16, encoded=torch.float16
    )
    assert not way.trains
    grid = way.grid(config, CPU)
    ((n, settings, dtype),) = made
    assert (n, settings["n_levels"], dtype) == (3, 2, torch.float16)
    points = fields.cloud(64, "uniform", CPU)
    forward, both = fields._encoding_rows(SMALL, config, points, "uniform", way)
    assert forward.error is not None
    assert 1e-5 < forward.error < 2e-3
    assert both.ms is not None
    assert grid(points).dtype == torch.float16


def test_rays_are_points_in_order_along_lines_in_the_cube() -> None:
    points = fields.cloud(256, "rays", CPU).view(-1, 64, 3)
    steps = points.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=0, atol=1e-6)
    assert 0 <= points.min() <= points.max() <= 1


def test_an_autoencoder_is_timed_in_the_precision_that_its_teacher_runs_it_in() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert vae_dtype("sd21", cuda) is torch.float16
    assert vae_dtype("sdxl", cuda) is torch.float32
    assert {vae_dtype(size, cpu) for size in ("sd21", "sdxl")} == {torch.float32}
