"""--encoding: what is refused, what auto falls back to, and that a run's name stays what it was."""

import dataclasses
from pathlib import Path

import pytest
import torch

from nerf.hash_grid import Backend
from sds3d import cli
from sds3d.config import GenerateConfig
from sds3d.config_json import run_key
from sds3d.encoding import check_encoding, fallback
from sds3d.errors import ConfigError
from sds3d.field_representation import make_field
from sds3d.optimize_config import EncodingName, OptimizeConfig

without_device = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


def config(encoding: EncodingName, device: str = "cpu", **options: object) -> GenerateConfig:
    optimize = dataclasses.replace(OptimizeConfig(), encoding=encoding, **options)
    return dataclasses.replace(GenerateConfig(prompt="a ball"), optimize=optimize, device=device)


def test_the_choices_are_those_of_the_hash_grid() -> None:
    assert EncodingName == Backend


def test_what_works_on_the_cpu_is_taken_without_a_word() -> None:
    for name in ("auto", "numba", "torch"):
        assert check_encoding(config(name)) is None
        assert make_field(config(name).optimize, seed=0).encoding.backend == name


@pytest.mark.parametrize("name", ["cuda", "tinycudann"])
def test_what_computes_on_cuda_is_refused_on_the_cpu(name: EncodingName) -> None:
    with pytest.raises(ConfigError, match=f"--encoding is {name}.*: use --encoding auto"):
        check_encoding(config(name))
    # An image has no hash grid.
    assert check_encoding(config(name, target="image")) is None


def test_numba_is_refused_on_cuda() -> None:
    with pytest.raises(ConfigError, match=r"--encoding is numba.*: use --device cpu"):
        check_encoding(config("numba", "cuda"))


@without_device
@pytest.mark.parametrize("name", ["cuda", "tinycudann"])
def test_what_cannot_be_had_is_refused_with_its_reason(name: EncodingName) -> None:
    reason = "torch finds no CUDA device" if name == "cuda" else "tinycudann is not installed"
    with pytest.raises(ConfigError, match=reason) as caught:
        check_encoding(config(name, "cuda"))
    text = str(caught.value)
    assert text.startswith(f"--encoding is {name} but ")
    assert text.endswith(": use --encoding auto")
    assert "\n" not in text


@without_device
def test_auto_says_in_one_line_why_it_falls_back() -> None:
    text = check_encoding(config("auto", "cuda"))
    assert text is not None
    assert text.startswith("the hash grid is computed by torch: plain torch on cuda: ")
    assert "our CUDA kernels cannot be had: torch finds no CUDA device" in text
    assert "tinycudann is not installed" in text
    assert "\n" not in text
    assert fallback("cpu") is None


@without_device
def test_the_command_refuses_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["a red mushroom", "--encoding", "cuda", "--device", "cpu", "--out", str(tmp_path)]
    assert cli.main(["generate", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--encoding is cuda" in line
    with pytest.raises(SystemExit) as caught:
        cli.main(["generate", "a red mushroom", "--encoding", "triton"])
    assert caught.value.code == 2


def test_a_run_keeps_the_name_that_it_had_before_there_was_a_choice() -> None:
    assert run_key(config("auto"), "0") == run_key(
        GenerateConfig(prompt="a ball", device="cpu"), "0"
    )
    assert run_key(config("torch"), "0") != run_key(config("auto"), "0")
