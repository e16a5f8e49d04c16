"""The command line: `sds3d generate "a red mushroom"`, and what goes with it.

stdout carries data and nothing else: a command's last line is its answer (a folder, a file), or
with `--json` every event is one line of JSON and the last of them the result. Progress and errors
go to stderr. Exit codes: 0 done, 1 a defect of the program, 2 a request that cannot be carried
out, 3 a batch with failures, 130 stopped by Ctrl-C, 143 by SIGTERM.

Only the command that was asked for is imported, and torch only after its options were checked.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .errors import (
    EXIT_FAILURES,
    EXIT_INTERNAL,
    EXIT_OK,
    EXIT_USAGE,
    BadInput,
    ConfigError,
    Interrupted,
    OutputError,
    Sds3dError,
    is_out_of_memory,
)
from .signals import Stop

if TYPE_CHECKING:
    from .events import Event
    from .generate import Generated, Parts

HELP = """\
usage: sds3d {generate,batch,app,export,preview,evaluate,distill,sample,methods,doctor,reproduce}

Type a prompt, get a textured mesh.

  sds3d generate PROMPT        make a mesh (GLB, OBJ), a turntable and a contact sheet
  sds3d batch PROMPTS          make the meshes of a list of prompts; skips what is already made
  sds3d app                    the same, and more, in a browser
  sds3d export RUN             make a finished run's mesh anew in other formats or sizes
  sds3d preview PROMPT         look at the teacher's own pictures of a prompt before a run
  sds3d evaluate               measure on random prompts how well meshes match them
  sds3d distill METHOD         train a few-step student of a teacher, in 2D
  sds3d sample STUDENT         draw samples of such a student
  sds3d methods                list every distillation method there is
  sds3d doctor                 say what this machine has and what is missing
  sds3d reproduce RESULT.JSON  make a result again and compare it with the recorded one

sds3d COMMAND --help lists the options of a command.
sds3d --version prints the version.
"""

Command = TypeVar("Command")


class Output:
    """Where a command's data goes: the real stdout, whatever libraries print meanwhile."""

    def __init__(self) -> None:
        self.stream = sys.stdout
        self.json = False

    def line(self, text: str) -> None:
        """Print a line. Raises OutputError where the system refuses it, as on a full disk."""
        try:
            print(text, file=self.stream, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            if self.stream is sys.__stdout__:
                _silence_stdout()
            raise OutputError(
                f"cannot write to the standard output ({error.strerror}): free some space or send "
                "it elsewhere, then run the same command again; what was already saved is kept"
            ) from error

    def event(self, event: Event) -> None:
        if self.json:
            self.line(event.to_json())


def main(arguments: Sequence[str] | None = None, *, parts: Parts | None = None) -> int:
    """Run the command line and return its exit code; SystemExit only for --help and bad flags.

    `parts` take the place of the program's own teacher, loop and export. Without `arguments` the
    command line is the process's own, which ends with it: signals change nothing any more then.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _accept_any_text()
    if not words:
        print(HELP, end="", file=sys.stderr)
        return EXIT_USAGE
    output, stop = Output(), Stop()
    with stop.listening(restore=arguments is not None):
        try:
            return _run(words, output, stop, parts)
        except Sds3dError as error:
            stop.end()
            code = stop.exit_code if isinstance(error, Interrupted) else error.exit_code
            return _fail(output, str(error), code)
        except KeyboardInterrupt:
            stop.end()
            return _fail(output, "stopped", stop.exit_code)
        except BrokenPipeError:
            # Whoever read our stdout is gone; nothing more can be said there.
            _silence_stdout()
            return EXIT_INTERNAL
        except Exception as error:
            stop.end()
            return _fail_internally(output, error)


def _run(words: list[str], output: Output, stop: Stop, parts: Parts | None) -> int:
    if words[0] in ("-h", "--help"):
        output.line(HELP.removesuffix("\n"))
        return EXIT_OK
    if words[0] == "--version":
        from importlib.metadata import version

        output.line(version("sds3d"))
        return EXIT_OK
    # Before anything is checked, so that what is wrong is reported as JSON too.
    output.json = "--json" in words[1:]
    command = COMMANDS.get(words[0])
    if command is None:
        raise BadInput(f"there is no command {words[0]!r}: give one of {', '.join(COMMANDS)}")
    with contextlib.redirect_stdout(sys.stderr):
        return command(Call(name=words[0], words=words[1:], output=output, stop=stop, parts=parts))


def _silence_stdout() -> None:
    """What is still to be written there at exit goes nowhere, instead of failing once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _accept_any_text() -> None:
    """Names of files that are no valid text must not end a command that prints them."""
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _fail(output: Output, text: str, code: int) -> int:
    from .events import Failure

    print(f"sds3d: {' '.join(text.split())}", file=sys.stderr)
    # If that cannot be said on stdout, it has been said on stderr.
    with contextlib.suppress(OutputError):
        output.event(Failure(text=text, exit_code=code))
    return code


def _fail_internally(output: Output, error: Exception) -> int:
    if is_out_of_memory(error):
        from .user_config import config_path

        text = (
            "out of memory: close other programs, use a smaller --preset (fast) or teacher, or see "
            f"dtype and image_size under [teacher] in {config_path()}"
        )
        return _fail(output, text, EXIT_USAGE)
    import traceback

    traceback.print_exception(error, file=sys.stderr)
    text = (
        f"internal error, please report it with the lines above ({type(error).__name__}: {error})"
    )
    return _fail(output, text, EXIT_INTERNAL)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One use of the command line: a command's name, its words, and what it talks through."""

    name: str
    words: list[str]
    output: Output
    stop: Stop
    parts: Parts | None

    def parse(self, command: type[Command], default: Command | None = None) -> Command:
        """The command's options; prints help or what is wrong with a flag, then SystemExit."""
        import tyro

        with contextlib.redirect_stdout(self.output.stream):
            parsed = tyro.cli(
                command,
                prog=f"sds3d {self.name}",
                args=self.words,
                default=default,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
        return cast(Command, parsed)


def _generate(call: Call) -> int:
    from .commands import Generate
    from .config import PresetName
    from .presets import PRESETS, generate_config

    preset = _last_value(call.words, "--preset") or "balanced"
    if preset not in PRESETS:
        raise ConfigError(f"--preset is {preset!r}: give one of {', '.join(PRESETS)}")
    # Until the prompt is known the config holds a placeholder; the positional takes its place.
    default = Generate(config=generate_config(cast(PresetName, preset), prompt="(prompt)"))
    given = call.parse(Generate, default)

    from . import generate as pipeline

    if given.resume is not None:
        device = given.config.device
        allowed = replace(default.config, device=device)
        changed = _changed_flags(allowed, given.config) + (["PROMPT"] if given.prompt else [])
        changed += ["--overwrite"] if given.overwrite else []
        # A preset gives the options their defaults, so that they do not differ from it.
        changed += ["--preset"] if _last_value(call.words, "--preset") is not None else []
        if changed:
            raise ConfigError(
                f"--resume goes on with the run's own options: leave out {', '.join(changed)}"
            )
        path = given.resume
        return _show(
            call.output,
            lambda listen: pipeline.resume(
                path, device=device, on_event=listen, should_stop=call.stop, parts=call.parts
            ),
        )
    config = replace(given.config, prompt=given.prompt)
    return _show(
        call.output,
        lambda listen: pipeline.generate(
            config,
            on_event=listen,
            should_stop=call.stop,
            parts=call.parts,
            overwrite=given.overwrite,
        ),
    )


def _batch(call: Call) -> int:
    from .batch.config import BatchConfig
    from .commands import with_json

    given = call.parse(with_json(BatchConfig))

    from .batch.run import run_batch
    from .progress import progress

    with progress() as show:

        def listen(event: Event) -> None:
            show(event)
            call.output.event(event)

        summary = run_batch(given.config, on_event=listen, should_stop=call.stop)
    if not given.json:
        call.output.line(str(summary.index))
    return EXIT_FAILURES if summary.failed else EXIT_OK


def _app(call: Call) -> int:
    from .ui.config import AppConfig

    config = call.parse(AppConfig)

    from .ui.serve import run

    run(config, call.output.line, call.stop)
    return call.stop.exit_code


def _export(call: Call) -> int:
    from .commands import Export

    given = call.parse(Export)

    from .generate import export_run

    return _show(
        call.output,
        lambda listen: export_run(
            given.run,
            formats=given.formats,
            max_faces=given.max_faces,
            texture_size=given.texture_size,
            device=given.device,
            on_event=listen,
            should_stop=call.stop,
            parts=call.parts,
        ),
    )


def _preview(call: Call) -> int:
    from .commands import with_json
    from .events import Preview
    from .preview import PreviewConfig, preview
    from .progress import progress

    given = call.parse(with_json(PreviewConfig))
    with progress() as show:

        def listen(event: Event) -> None:
            show(event)
            call.output.event(event)

        path = preview(given.config, listen)
        listen(Preview(path))
    if not given.json:
        call.output.line(str(path))
    return EXIT_OK


def _evaluate(call: Call) -> int:
    import json

    from .commands import with_json
    from .evaluate.config import EvaluateConfig
    from .progress import progress

    given = call.parse(with_json(EvaluateConfig))

    from .evaluate.run import evaluate

    with progress() as show:

        def listen(event: Event) -> None:
            show(event)
            call.output.event(event)

        summary = evaluate(given.config, listen, should_stop=call.stop, parts=call.parts)
    call.output.line(json.dumps(summary) if call.output.json else json.dumps(summary, indent=2))
    return EXIT_OK


def _distill(call: Call) -> int:
    from .commands import with_json
    from .distill.run import DistillConfig, distill
    from .progress import progress

    given = call.parse(with_json(DistillConfig))
    with progress() as show:

        def listen(event: Event) -> None:
            show(event)
            call.output.event(event)

        folder = distill(given.config, listen, call.stop)
    if not given.json:
        call.output.line(str(folder))
    return EXIT_OK


def _sample(call: Call) -> int:
    from .distill.run import SampleConfig, sample_student

    call.output.line(str(sample_student(call.parse(SampleConfig))))
    return EXIT_OK


def _methods(call: Call) -> int:
    import json

    from .commands import Methods

    given = call.parse(Methods)

    from .distill.catalogue import METHODS, card_as_dict, table

    if given.json:
        call.output.line(json.dumps([card_as_dict(method) for method in METHODS]))
    else:
        call.output.line(table())
    return EXIT_OK


def _doctor(call: Call) -> int:
    from .commands import Doctor

    given = call.parse(Doctor)

    from .doctor import examine, healthy, report, to_json

    findings = examine(given.teacher)
    call.output.line(to_json(findings) if given.json else report(findings))
    return EXIT_OK if healthy(findings) else EXIT_INTERNAL


def _reproduce(call: Call) -> int:
    from .commands import with_json
    from .reproduce import ReproduceConfig, reproduce

    given = call.parse(with_json(ReproduceConfig))
    return _show(
        call.output,
        lambda listen: reproduce(
            given.config, on_event=listen, should_stop=call.stop, parts=call.parts
        ),
    )


COMMANDS: dict[str, Callable[[Call], int]] = {
    "generate": _generate,
    "batch": _batch,
    "app": _app,
    "export": _export,
    "preview": _preview,
    "evaluate": _evaluate,
    "distill": _distill,
    "sample": _sample,
    "methods": _methods,
    "doctor": _doctor,
    "reproduce": _reproduce,
}


def _show(output: Output, work: Callable[[Callable[[Event], None]], Generated]) -> int:
    """Run `work` with its progress on stderr, and print its folder or its events on stdout."""
    from .progress import progress

    with progress() as show:

        def listen(event: Event) -> None:
            show(event)
            output.event(event)

        generated = work(listen)
    if not output.json:
        output.line(str(generated.folder))
    return EXIT_OK


def _last_value(words: Sequence[str], flag: str) -> str | None:
    """The value of a flag, before the options proper are parsed."""
    value = None
    for i, word in enumerate(words):
        if word == "--":
            break
        if word == flag and i + 1 < len(words):
            value = words[i + 1]
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def _changed_flags(default: Any, given: Any) -> list[str]:
    """The flags of the fields in which two configs differ, nested ones included."""
    changed = []
    for f in fields(default):
        before, after = getattr(default, f.name), getattr(given, f.name)
        if is_dataclass(before):
            changed += _changed_flags(before, after)
        elif before != after:
            changed.append("--" + f.name.replace("_", "-"))
    return changed


if __name__ == "__main__":
    sys.exit(main())
