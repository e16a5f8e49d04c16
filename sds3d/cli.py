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
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .cli_call import Call, Output, silence_stdout
from .cli_commands import COMMANDS
from .errors import (
    EXIT_INTERNAL,
    EXIT_OK,
    EXIT_USAGE,
    BadInput,
    Interrupted,
    OutputError,
    Sds3dError,
    is_out_of_memory,
)
from .signals import Stop

if TYPE_CHECKING:
    from .generate import Parts

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
            try:
                return _run(words, output, stop, parts)
            finally:
                # A signal that comes just before is the KeyboardInterrupt below.
                stop.end()
        except Sds3dError as error:
            code = stop.exit_code if isinstance(error, Interrupted) else error.exit_code
            return _fail(output, str(error), code)
        except KeyboardInterrupt:
            stop.end()
            return _fail(output, stop.way_on or "stopped", stop.exit_code)
        except BrokenPipeError:
            # Whoever read our stdout is gone; nothing more can be said there.
            silence_stdout()
            return EXIT_INTERNAL
        except Exception as error:
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


if __name__ == "__main__":
    sys.exit(main())
