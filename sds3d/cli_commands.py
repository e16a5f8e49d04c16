"""What each command of the command line does; imports what it needs when it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from .cli_call import Call
from .errors import (
    EXIT_FAILURES,
    EXIT_INTERNAL,
    EXIT_OK,
    ConfigError,
    DistillationStopped,
    Interrupted,
)

if TYPE_CHECKING:
    from pathlib import Path

    from .events import Listener
    from .generate import Generated


def _generate(call: Call) -> int:
    from .commands import Generate
    from .config import PresetName
    from .presets import PRESETS, generate_config, with_method, with_teacher

    preset = _last_value(call.words, "--preset") or "balanced"
    if preset not in PRESETS:
        raise ConfigError(f"--preset is {preset!r}: give one of {', '.join(PRESETS)}")
    # Until the prompt is known the config holds a placeholder; the positional takes its place.
    config = generate_config(cast(PresetName, preset), prompt="(prompt)")
    method = _last_value(call.words, "--method") or config.optimize.method
    default = Generate(config=replace(config, optimize=with_method(config.optimize, method)))
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
        _keeps_run(call, path)
        return _show(
            call,
            lambda listen: pipeline.resume(
                path, device=device, on_event=listen, should_stop=call.stop, parts=call.parts
            ),
        )
    counts = {"views_per_step", "refine_views_per_step"}
    counted = {name for name in counts if _last_value(call.words, _flag(name)) is not None}
    optimize = with_teacher(given.config.optimize, given.config.teacher, counted)
    config = replace(given.config, prompt=given.prompt, optimize=optimize)
    return _show(
        call,
        lambda listen: pipeline.generate(
            config,
            on_event=listen,
            should_stop=call.stop,
            on_folder=lambda folder: _keeps_run(call, folder),
            parts=call.parts,
            overwrite=given.overwrite,
        ),
    )


def _batch(call: Call) -> int:
    from .batch.config import BatchConfig
    from .commands import with_json

    given = call.parse(with_json(BatchConfig))

    from .batch.run import BatchInterrupted, run_batch

    call.stop.way_on = str(BatchInterrupted(given.config.out))
    with call.listening() as listen:
        summary = run_batch(given.config, on_event=listen, should_stop=call.stop)
    if not given.json and summary.index is not None:
        call.output.line(str(summary.index))
    return EXIT_FAILURES if summary.failed or summary.index is None else EXIT_OK


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

    _keeps_run(call, given.run)
    return _show(
        call,
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

    given = call.parse(with_json(PreviewConfig))
    with call.listening() as listen:
        path = preview(given.config, listen)
        listen(Preview(path))
    if not given.json:
        call.output.line(str(path))
    return EXIT_OK


def _evaluate(call: Call) -> int:
    import json

    from .commands import with_json
    from .evaluate.config import EvaluateConfig

    given = call.parse(with_json(EvaluateConfig))

    from .evaluate.run import EvaluationInterrupted, evaluate

    call.stop.way_on = str(EvaluationInterrupted(given.config.out))
    with call.listening() as listen:
        summary = evaluate(given.config, listen, should_stop=call.stop, parts=call.parts)
    call.output.line(json.dumps(summary) if call.output.json else json.dumps(summary, indent=2))
    return EXIT_OK


def _distill(call: Call) -> int:
    from .commands import with_json
    from .distill.run import DistillConfig, distill

    given = call.parse(with_json(DistillConfig))
    call.stop.way_on = str(DistillationStopped(given.config.out))
    with call.listening() as listen:
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

    findings = examine(given.teacher, given.preset)
    call.output.line(to_json(findings) if given.json else report(findings))
    return EXIT_OK if healthy(findings) else EXIT_INTERNAL


def _reproduce(call: Call) -> int:
    from .commands import with_json
    from .reproduce import ReproduceConfig, reproduce

    given = call.parse(with_json(ReproduceConfig))
    return _show(
        call,
        lambda listen: reproduce(
            given.config,
            on_event=listen,
            should_stop=call.stop,
            on_folder=lambda folder: _keeps_run(call, folder),
            parts=call.parts,
        ),
    )


def _show(call: Call, work: Callable[[Listener], Generated]) -> int:
    """Run `work` and print its folder, where its events are not printed."""
    with call.listening() as listen:
        generated = work(listen)
    if not call.output.json:
        call.output.line(str(generated.folder))
    return EXIT_OK


def _keeps_run(call: Call, folder: Path) -> None:
    """Say how to go on with the run of that folder, whenever a signal stops the command."""
    call.stop.way_on = str(Interrupted(folder))


def _last_value(words: Sequence[str], flag: str) -> str | None:
    """The value of a flag, before the options proper are parsed."""
    value = None
    for i, word in enumerate(words):
        if word == "--":
            break
        # As the parser takes them: --views_per_step is --views-per-step.
        name, equals, after = word.partition("=")
        if name.replace("_", "-") != flag:
            continue
        if equals:
            value = after
        elif i + 1 < len(words):
            value = words[i + 1]
    return value


def _flag(name: str) -> str:
    """The flag of the field of that name."""
    return "--" + name.replace("_", "-")


def _changed_flags(default: Any, given: Any) -> list[str]:
    """The flags of the fields in which two configs differ, nested ones included."""
    changed = []
    for f in fields(default):
        before, after = getattr(default, f.name), getattr(given, f.name)
        if is_dataclass(before):
            changed += _changed_flags(before, after)
        elif before != after:
            changed.append(_flag(f.name))
    return changed


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
