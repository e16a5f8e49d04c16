"""The command line: exit codes, what goes to stdout, signals, and no traceback for bad input."""

import contextlib
import errno
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sds3d import cli
from sds3d.events import Event, Health, Preview, Result, Stage, Step, Warning
from sds3d.progress import eta_text, progress, step_text
from sds3d.runs import RunFolder

STEPS = ("--steps", "6", "--device", "cpu")


@pytest.fixture
def run(fakes: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the command line with the fakes in the test's own folder; its exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> int:
        try:
            return cli.main(words, parts=fakes.make_parts())
        except SystemExit as error:
            return int(error.code or 0)

    return call


def _start(fakes: SimpleNamespace, folder: Path, *words: str, **env: str) -> Any:
    return subprocess.Popen(
        [sys.executable, str(fakes.script), *words],
        cwd=folder,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for(condition: Any, process: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- what is said where ----------------------------------------------------------------------


def test_the_last_line_of_stdout_is_the_folder(run: Any, capsys: Any, tmp_path: Path) -> None:
    assert run("generate", "a red mushroom", *STEPS, "--out", "made") == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    folder = tmp_path / out.strip()
    assert folder.parent == tmp_path / "made"
    assert RunFolder.open(folder).verify() == []
    assert "step 6/6" in err
    assert "ETA" in err
    assert "opacity 0.25" in err


def test_json_is_one_event_per_line_and_the_result_is_the_last(run: Any, capsys: Any) -> None:
    assert run("generate", "a red mushroom", *STEPS, "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = [event["event"] for event in events]
    assert names == ["stage", "stage", *["step"] * 6, "stage", "stage", "result"]
    assert Path(events[-1]["folder"]).is_dir()
    assert events[-1]["result"]["steps"] == 6
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4, 5, 6]


def made_with(run: Any, capsys: Any, *words: str) -> dict[str, Any]:
    """The options in the result.json of a run with the fakes."""
    assert run("generate", "a red mushroom", *STEPS, "--teacher", "toybox", *words) == 0
    result = json.loads((Path(capsys.readouterr().out.strip()) / "result.json").read_bytes())
    return result["config"]["optimize"]


def test_a_method_is_one_flag_and_what_it_needs_is_in_the_result(run: Any, capsys: Any) -> None:
    made = made_with(run, capsys, "--method", "reconstruction")
    assert (made["method"], made["guidance_rescale"]) == ("reconstruction", 0.5)
    # Beside a preset with another weighting too, and a value that is given wins.
    words = ("--preset", "dreamfusion", "--method=reconstruction", "--guidance-rescale", "0.2")
    made = made_with(run, capsys, *words)
    assert (made["loss_weighting"], made["guidance_rescale"]) == ("x0", 0.2)
    # Other methods, and so their runs' names, stay as they were.
    assert made_with(run, capsys, "--method", "sds") == made_with(run, capsys)
    assert made_with(run, capsys)["guidance_rescale"] == 0.0
    assert run("generate", "a mushroom", "--method", "reconstruction", "--loss-weighting=eps") == 2
    assert "give x0" in capsys.readouterr().err


def test_what_libraries_print_does_not_reach_stdout(
    fakes: SimpleNamespace, tmp_path: Path, capsys: Any
) -> None:
    def chatty(*arguments: Any) -> Any:
        print("a library says hello")
        return fakes.write_files(*arguments)

    parts = fakes.make_parts(write_files=chatty)
    words = ("generate", "a red mushroom", *STEPS, "--json", "--out", str(tmp_path))
    assert cli.main(words, parts=parts) == 0
    out, err = capsys.readouterr()
    assert all(json.loads(line) for line in out.splitlines())
    assert "hello" in err


def test_presets_set_what_flags_do_not(run: Any, capsys: Any) -> None:
    words = ("generate", "a red mushroom", *STEPS, "--preset", "fast", "--guidance-scale", "9")
    assert run(*words, "--texture-size", "0", "--formats", "glb", "--json") == 0
    config = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]["config"]
    assert config["preset"] == "fast"
    assert config["mesh"]["max_faces"] == 20_000
    assert config["mesh"]["formats"] == ["glb"]
    assert config["mesh"]["texture_size"] == 0
    assert (config["optimize"]["steps"], config["optimize"]["guidance_scale"]) == (6, 9.0)


def test_export_and_reproduce_and_resume_of_a_finished_run(run: Any, capsys: Any) -> None:
    assert run("generate", "a red mushroom", *STEPS) == 0
    folder = capsys.readouterr().out.strip()
    assert run("export", folder, "--formats", "obj", "--max-faces", "500") == 0
    assert capsys.readouterr().out.strip() == folder
    assert sorted(p.name for p in Path(folder).glob("mesh.*")) == ["mesh.obj"]
    assert run("generate", "--resume", folder) == 0
    assert capsys.readouterr().out.strip() == folder
    assert run("reproduce", f"{folder}/result.json", "--out", "again") == 0
    out, err = capsys.readouterr()
    assert out.startswith("again")
    assert "warning" not in err
    assert run("reproduce", f"{folder}/result.json") == 0


def test_the_help_names_every_command_and_nothing_else(run: Any, capsys: Any) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    named = re.search(r"\{([a-z,]+)\}", out)
    assert named is not None
    assert named[1].split(",") == list(cli.COMMANDS)
    assert set(re.findall(r"^  sds3d (\w+)", out, re.MULTILINE)) == set(cli.COMMANDS)
    assert run() == 2
    assert "usage" in capsys.readouterr().err
    assert run("--version") == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_parsing_imports_neither_torch_nor_anything_heavy() -> None:
    """All of the options are read and found wrong before the expensive imports."""
    code = """
import sys
from sds3d.cli import main
words = [
    (["--help"], 0),
    (["generate", "--help"], 0),
    (["export", "--help"], 0),
    (["preview", "--help"], 0),
    (["reproduce", "--help"], 0),
    (["batch", "--help"], 0),
    (["generate", ""], 2),
    (["generate", "a red mushroom", "--steps", "0"], 2),
    (["generate", "a red mushroom", "--preset", "slow"], 2),
    (["generate", "a red mushroom", "--out", "/dev/null/x"], 2),
    (["generate", "--resume", "missing"], 2),
    (["export", "missing"], 2),
    (["preview", "a red mushroom", "--sample-steps", "0"], 2),
    (["reproduce", "missing"], 2),
    (["batch", "missing.txt"], 2),
    (["batch", "missing.txt", "--shard", "0/2"], 2),
]
for given, expected in words:
    try:
        code = main(given)
    except SystemExit as error:
        code = error.code or 0
    assert code == expected, (given, code)
heavy = {"torch", "numba", "numpy", "trimesh", "diffusers", "transformers", "scipy"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["generate"], "the prompt is empty"),
        (["generate", ""], "the prompt is empty"),
        (["generate", "m" * 102_400], "102400 characters"),
        (["generate", "a red\x1b[31m mushroom"], r"control character U\+001B"),
        (["generate", "a red \udcff mushroom"], r"U\+DCFF"),
        (["generate", "../../../etc/passwd"], "nothing known"),
        (["generate", "a hamburger"], "nearest: mushroom"),
        (["generate", "a red mushroom", "--preset", "slow"], "fast, balanced, quality"),
        (["generate", "a red mushroom", "--preset=slow"], "fast, balanced, quality"),
        (["generate", "a red mushroom", "--out", "/dev/null/out"], "choose another folder"),
        (["generate", "a red mushroom", "--out", "file"], "choose another folder"),
        (["generate", "--resume", "missing"], "not a run's folder"),
        (["generate", "--resume", "missing", "--steps", "9"], "leave out --steps"),
        (["generate", "--resume", "missing", "--method=reconstruction"], "leave out --method$"),
        (["generate", "a red mushroom", "--resume", "missing"], "leave out PROMPT"),
        (["generate", "--resume", "missing", "--overwrite"], "leave out --overwrite"),
        (["generate", "--resume", "missing", "--preset", "fast"], "leave out --preset$"),
        (["generate", "--resume", "missing", "--preset=balanced"], "leave out --preset$"),
        (["export", "missing"], "not a run's folder"),
        (["reproduce", "missing.json"], "cannot read missing.json"),
        (["preview", ""], "the prompt is empty"),
        (["preview", "a red mushroom", "--out", "file"], "choose another folder"),
        (["paint", "a red mushroom"], "there is no command 'paint'"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    run: Any, capsys: Any, tmp_path: Path, words: list[str], reason: str
) -> None:
    (tmp_path / "file").write_text("")
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("sds3d: ")]
    assert len(lines) == 1
    assert re.search(reason, lines[0])
    assert len(lines[0]) < 400
    assert "Traceback" not in err


def test_with_json_a_failure_is_an_event_too(run: Any, capsys: Any) -> None:
    assert run("generate", "a hamburger", "--json", "--device", "cpu") == 2
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["event"] == "failure"
    assert last["exit_code"] == 2
    assert "nearest" in last["text"]


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "a red mushroom", "--preset", "slow"],
        ["generate", "--resume", "missing", "--preset", "fast"],
        ["paint", "a red mushroom"],
        ["reproduce", "missing.json"],
    ],
)
def test_with_json_what_is_found_before_the_options_are_read_is_an_event_too(
    run: Any, capsys: Any, words: list[str]
) -> None:
    assert run(*words, "--json") == 2
    out, err = capsys.readouterr()
    (failure,) = [json.loads(line) for line in out.splitlines()]
    assert (failure["event"], failure["exit_code"]) == ("failure", 2)
    assert failure["text"] in err


def test_the_result_of_a_reproduction_comes_after_its_differences(
    run: Any, capsys: Any, tmp_path: Path
) -> None:
    assert run("generate", "a red mushroom", *STEPS) == 0
    path = Path(capsys.readouterr().out.strip()) / "result.json"
    result = json.loads(path.read_text())
    result["files"]["mesh.glb"] = "0" * 64
    path.write_text(json.dumps(result))
    assert run("reproduce", str(path), "--json", "--out", "again") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events].count("result") == 1
    assert events[-1]["event"] == "result"
    assert "mesh.glb differs" in events[-2]["text"]


def test_a_result_of_a_gpu_is_reproduced_on_the_cpu_where_that_is_asked_for(
    run: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("generate", "a red mushroom", *STEPS) == 0
    path = Path(capsys.readouterr().out.strip()) / "result.json"
    result = json.loads(path.read_text())
    result["config"]["device"] = "cuda"
    path.write_text(json.dumps(result))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run("reproduce", str(path)) == 2
    assert "use --device cpu" in capsys.readouterr().err
    assert run("reproduce", str(path), "--device", "cpu", "--json") == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["result"]["config"]["device"] == "cpu"


def test_an_output_folder_whose_name_is_no_text_works(
    fakes: SimpleNamespace, tmp_path: Path, run: Any, capsys: Any
) -> None:
    name = os.fsdecode(b"out-\xff")
    try:
        (tmp_path / name).mkdir()
    except OSError:
        pytest.skip("this file system takes only valid text as names")
    words = ("generate", "a red mushroom", *STEPS, "--out", name)
    assert run(*words, "--json") == 0
    folder = json.loads(capsys.readouterr().out.splitlines()[-1])["folder"]
    assert Path(folder).parent.name == name
    printed = subprocess.run(
        [sys.executable, str(fakes.script), *words], cwd=tmp_path, capture_output=True, check=True
    )
    assert printed.stdout == os.fsencode(folder) + b"\n"


def test_a_defect_is_told_apart_from_bad_input(
    fakes: SimpleNamespace, tmp_path: Path, capsys: Any
) -> None:
    def defect(*_: Any) -> Any:
        raise ZeroDivisionError("oops")

    words = ("generate", "a red mushroom", *STEPS, "--out", str(tmp_path))
    assert cli.main(words, parts=fakes.make_parts(write_files=defect)) == 1
    err = capsys.readouterr().err
    assert "internal error" in err
    assert "Traceback" in err

    def exhausted(*_: Any) -> Any:
        raise MemoryError

    assert cli.main(words, parts=fakes.make_parts(write_files=exhausted)) == 2
    (line,) = [s for s in capsys.readouterr().err.splitlines() if "out of memory" in s]
    for remedy in ("--resume ", "--views-per-step", "--mesh-resolution", "checkpoint_vae"):
        assert remedy in line
    # Where there is no run yet to go on with.
    parts = replace(fakes.make_parts(), load_teacher=exhausted)
    assert cli.main(words, parts=parts) == 2
    err = capsys.readouterr().err
    assert "out of memory: " in err
    assert "--resume" not in err


def test_a_full_disk_behind_stdout_is_named_and_what_was_made_is_kept(
    run: Any, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = ("generate", "a red mushroom", *STEPS)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        codes = [run(*words), run(*words, "--json"), run("--version"), run("--help")]
    assert codes == [2, 2, 2, 2]
    err = capsys.readouterr().err
    assert err.count("sds3d: cannot write to the standard output (No space left on device)") == 4
    assert "Traceback" not in err
    (folder,) = (tmp_path / "outputs").iterdir()
    assert RunFolder.open(folder).verify() == []


def test_what_python_itself_would_write_at_exit_does_not_fail_once_more() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sds3d.cli", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("sds3d: cannot write to the standard output")


def test_a_signal_while_the_end_is_being_told_changes_nothing(
    fakes: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(io.StringIO):
        def write(self, text: str) -> int:
            os.kill(os.getpid(), signal.SIGINT)
            return super().write(text)

    def twice(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        raise AssertionError("the second signal did not stop it")

    parts = fakes.make_parts(write_files=twice)
    err = Impatient()
    words = ("generate", "a red mushroom", *STEPS, "--out", str(tmp_path), "--json")
    with monkeypatch.context() as patch:
        patch.setattr("sds3d.progress.progress", lambda: contextlib.nullcontext(lambda _: None))
        patch.setattr(sys, "stderr", err)
        assert cli.main(words, parts=parts) == 130
    assert "sds3d generate --resume" in err.getvalue()


def test_after_its_command_a_process_takes_no_notice_of_signals_and_a_caller_gets_its_own_back(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    assert cli.main(["--version"]) == 0
    assert [signal.getsignal(number) for number in numbers] == before
    monkeypatch.setattr(sys, "argv", ["sds3d", "--version"])
    try:
        assert cli.main() == 0
        for number in numbers * 2:
            os.kill(os.getpid(), number)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert capsys.readouterr().err == ""


def test_fuzzed_prompts_and_flags_never_end_in_a_traceback(
    run: Any, capsys: Any, tmp_path: Path
) -> None:
    draw = random.Random(3)
    flags = [
        "--seed", "--steps", "--guidance-scale", "--preset", "--formats", "--max-faces", "--device",
        "--texture-size", "--negative-prompt", "--resolutions", "--timestep-max", "--teacher",
        "--checkpoint-seconds", "--n-levels", "--stepz", "--", "-x", "--resume", "--overwrite",
    ]  # fmt: skip
    values = ["0", "-1", "1e999", "nan", "9" * 400, "", "glb", "stl", "fast", "slow", "../x", "0.5"]
    values += ["\u202e", "64 128", "\x1b[2J", "cpu", "%s", "{}", "None", "\udc80", "--", "\t", "\0"]
    codes = set()
    for _ in range(200):
        count = draw.randint(0, 4)
        words = ["generate", *(draw.choice(draw.choice([flags, values])) for _ in range(count))]
        code = run(*words)
        out, err = capsys.readouterr()
        codes.add(code)
        assert code == 2, words
        assert out == ""
        assert err != ""
        assert "Traceback" not in err, words
        assert "internal error" not in err, words
    assert codes == {2}
    assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").iterdir())


# --- signals and other processes -------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_within_a_step_and_the_run_resumes_to_the_same_bits(
    fakes: SimpleNamespace, tmp_path: Path, run: Any, capsys: Any, number: int, code: int
) -> None:
    words = ("generate", "a red mushroom", "--steps", "80", "--device", "cpu")
    process = _start(fakes, tmp_path, *words, "--json", STEP_SECONDS="0.05")
    out = tmp_path / "outputs"
    _wait_for(lambda: list(out.glob("*/checkpoint-*.json")), process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert "sds3d generate --resume" in stderr
    last = json.loads(stdout.splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("failure", code)
    (folder,) = out.iterdir()
    assert not (folder / "result.json").exists()
    taken = sum(json.loads(line)["event"] == "step" for line in stdout.splitlines())
    assert taken < 80
    command = re.search(r"(sds3d generate --resume .*)", last["text"])
    assert command is not None
    assert run(*command[1].split()[1:], "--json") == 0
    resumed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(event["event"] == "step" for event in resumed) == 80 - taken
    assert run(*words, "--out", "whole", "--json") == 0
    whole = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]
    assert whole["files"]["mesh.glb"] == resumed[-1]["result"]["files"]["mesh.glb"]


def test_a_second_process_on_a_folder_is_refused_and_the_first_is_not_disturbed(
    fakes: SimpleNamespace, tmp_path: Path, run: Any, capsys: Any
) -> None:
    words = ("generate", "a red mushroom", "--steps", "80", "--device", "cpu")
    process = _start(fakes, tmp_path, *words, STEP_SECONDS="0.05")
    _wait_for(lambda: list(tmp_path.glob("outputs/*/checkpoint-*.json")), process)
    (folder,) = (tmp_path / "outputs").iterdir()
    assert run(*words) == 2
    assert "another process is working in" in capsys.readouterr().err
    assert run("generate", "--resume", str(folder)) == 2
    assert process.poll() is None, "the first ended too early: the test shows nothing"
    process.kill()
    process.communicate()
    # The system has let go of the folder, and what was saved is whole.
    assert run("generate", "--resume", str(folder)) == 0


# --- the display -----------------------------------------------------------------------------


def _step(step: int) -> Step:
    return Step(
        step=step,
        steps=100,
        timestep=0.25,
        opacity=0.5,
        step_seconds=0.1,
        eta_seconds=65.0,
        agreement=0.75,
        resolution=64,
    )


def test_progress_without_a_terminal_is_a_few_plain_lines(capsys: Any, tmp_path: Path) -> None:
    result = {"seconds": {"total": 61.0}, "mesh": {"faces": 5}}
    messages: list[Event] = [
        Warning("[bold] is not markup"),
        Health("fog"),
        Preview(Path("a.png")),
        Result(folder=tmp_path, result=result),
    ]
    with progress() as show:
        show(Stage("optimize"))
        for step in range(1, 101):
            show(_step(step))
        for event in messages:
            show(event)
    out, err = capsys.readouterr()
    assert out == ""
    assert 10 <= err.count("ETA 1:05") <= 12
    for text in ("warning: [bold] is not markup", "health: fog", "a.png", "in 1:01, 5 faces"):
        assert text in err
    assert "\x1b" not in err


def test_progress_on_a_terminal_shows_a_bar_with_the_live_line(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with progress() as show:
        show(Stage("optimize"))
        show(_step(50))
        show(Warning("[bold] is not markup"))
        show(Stage("mesh"))
    out, err = capsys.readouterr()
    assert out == ""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err)
    assert "50/100" in plain
    assert step_text(_step(50)) in plain
    assert "[bold] is not markup" in plain


def test_the_live_line_says_time_opacity_and_pace() -> None:
    text = step_text(_step(1))
    assert text == "t 0.25  opacity 0.50  agreement 0.75  64 px  0.10 s/step"
    assert [eta_text(s) for s in (-1, 0, 59.6, 3661)] == ["0:00", "0:00", "1:00", "61:01"]
