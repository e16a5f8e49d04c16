"""Students beside their teacher as HTML: pictures of the same noise, curves, and a table."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import Any

from sds3d.progress import eta_text
from sds3d.ui import pieces
from sds3d.ui.plots import line_plot
from sds3d.ui.taxonomy import Catalogue
from sds3d.ui.trainings import Training, Trainings

FIGURES = {
    "sliced_wasserstein": ("To the data", "sliced Wasserstein distance"),
    "to_teacher": ("To the teacher", "sliced Wasserstein distance to its samples in many steps"),
    "mmd": ("MMD", "maximum mean discrepancy to the data"),
    "mode_weight_error": ("Mode weight", "largest error of a mode's weight"),
    "frechet": ("Fréchet", "distance of a classifier's features to the data's"),
    "chamfer": ("Chamfer", "mean distance to the nearest cloud of the data"),
    "training_seconds": ("Training, s", "seconds of training"),
    "seconds_per_1000": ("1000 samples, s", "seconds for a thousand samples"),
}
"""A column's head and what it means; less is better in all."""
CONVERGED = "Teacher, {} by DDIM"


class StudentsView:
    """Draws students of one ground, sampled in the same number of evaluations."""

    def __init__(self, catalogue: Catalogue, trainings: Trainings) -> None:
        self._catalogue = catalogue
        self._trainings = trainings

    def draw(self, shown: Sequence[Training]) -> str:
        """The teacher's pictures, each student's, and what was measured; "" for no student."""
        if not shown:
            return ""
        columns = [*self._teacher(shown), *map(self._student, shown)]
        ground = html.escape(shown[0].config.teacher)
        return (
            f'<div class="students {ground}">{"".join(columns)}</div>'
            f"{self._legend(shown)}{self._table(shown)}"
        )

    def label(self, training: Training) -> str:
        """A student in a list to choose from."""
        config = training.config
        return (
            f"{self._catalogue.title(config.method)} · NFE {config.nfe} · {config.steps} steps · "
            f"batch {config.batch} · rate {config.learning_rate:g} · seed {config.seed}"
        )

    # --- columns ------------------------------------------------------------------------------

    def _teacher(self, shown: Sequence[Training]) -> list[str]:
        """Its samples in many steps and in as few as the students': the same for all of them."""
        drawn = next((t for t in shown if t.pictured is not None or t.state == "done"), None)
        if drawn is None or not (drawn.config.folder / "teacher.png").is_file():
            return []
        nfe = drawn.config.nfe
        columns = [("teacher.png", "converged: DDIM in 64 evaluations")]
        if nfe < 64:
            columns.append(("teacher-few.png", f"DDIM in {evaluations(nfe)}"))
        return [
            f'<section class="teacher"><h3>Teacher</h3><p class=facts>{how}</p>'
            f'<img src="{pieces.url("students", drawn.key, name)}" alt="the teacher, {how}">'
            "</section>"
            for name, how in columns
        ]

    def _student(self, training: Training) -> str:
        config = training.config
        title = html.escape(self._catalogue.title(config.method))
        facts = html.escape(" · ".join(self._facts(training)))
        parts = [f"<h3>{title}</h3><p class=facts>{facts}</p>", self._picture(training, title)]
        if training.is_live:
            share = min(1.0, training.step / config.steps)
            parts.append(
                f'<progress value="{share:.3f}" max="1" aria-label="progress">{share:.0%}'
                "</progress>"
            )
        if training.state == "failed":
            parts.append(pieces.notice(training.reason))
        for name, series in self._trainings.course(training).items():
            parts.append(line_plot(name, series, steps=config.steps))
        if training.state == "done":
            parts.append(_downloads(training))
        return (
            f'<section class="status {training.state}" data-student="{html.escape(config.method)}"'
            f">{''.join(parts)}</section>"
        )

    def _facts(self, training: Training) -> list[str]:
        config, facts = training.config, [evaluations(training.config.nfe)]
        if training.state == "waiting":
            facts.append("waits for its turn")
        elif training.state == "training":
            facts.append(f"step {training.step} of {config.steps}" if training.step else "starting")
            if training.stage and training.stage != "distil":
                facts.append(training.stage)
            if training.eta_seconds is not None:
                facts.append(f"{eta_text(training.eta_seconds)} left")
        else:
            facts.append(f"{config.steps} steps, seed {config.seed}")
        return facts

    def _picture(self, training: Training, title: str) -> str:
        if training.state == "done":
            if self._trainings.picture(training) is None:
                # Made before there were pictures of one noise.
                source = pieces.url("students", training.key, "samples.png")
                return f'<img class="sheet" src="{source}" alt="samples of {title}">'
            source = pieces.url("students", training.key, "student.png")
            return f'<img src="{source}" alt="samples of {title}">'
        picture = None if training.pictured is None else self._trainings.picture(training)
        if picture is None:
            text = "The samples appear here." if training.is_live else "No picture was taken."
            return f'<div class="picture none">{text}</div>'
        # In the page itself: fetched pictures would blink with every new one.
        data = base64.b64encode(picture).decode()
        return (
            f'<img class="live" decoding="sync" data-step="{training.pictured}" '
            f'src="data:image/png;base64,{data}" '
            f'alt="samples of {title} after {training.pictured} steps">'
        )

    def _legend(self, shown: Sequence[Training]) -> str:
        ground = shown[0].config.teacher
        if ground == "digits":
            text = "Each cell is one noise and one class, the same in every sheet."
        elif ground == "clouds":
            text = "The same noise in every picture; what it becomes is up to the student."
        else:
            text = (
                "<i class=density></i> the teacher's density <i class=sample></i> samples "
                "<i class=path></i> their trajectories, of the same noise in every picture "
                "(a generator has none)."
            )
        return f'<p class="legend">{text}</p>'

    # --- table --------------------------------------------------------------------------------

    def _table(self, shown: Sequence[Training]) -> str:
        cards = [(training, self._trainings.card(training)) for training in shown]
        done = [(t, card) for t, card in cards if card is not None and t.state == "done"]
        if not done:
            return ""
        rows: list[tuple[str, dict[str, Any], bool]] = []
        for found in reversed(done[0][1].get("teacher", [])):
            name = CONVERGED.format(evaluations(int(found["nfe"])))
            # To itself it has no distance.
            own = {k: v for k, v in found.items() if k != "to_teacher" or v != 0}
            rows.append((name, own, False))
        rows += [(self._catalogue.title(t.config.method), c["measured"], True) for t, c in done]
        columns = [name for name in FIGURES if any(_is_number(row[1].get(name)) for row in rows)]
        best = {name: _best([r[1].get(name) for r in rows if r[2]]) for name in columns}
        head = "".join(
            f'<th scope=col title="{html.escape(FIGURES[name][1])}">{FIGURES[name][0]}</th>'
            for name in columns
        )
        body = "".join(
            f"<tr><th scope=row>{html.escape(title)}</th>"
            + "".join(_cell(found.get(name), best[name] if mine else None) for name in columns)
            + "</tr>"
            for title, found, mine in rows
        )
        return (
            f'<div class="wide"><table class="statistics"><thead><tr><th scope=col>Less is better'
            f"</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )


def evaluations(nfe: int) -> str:
    """How many, in words."""
    return "1 evaluation" if nfe == 1 else f"{nfe} evaluations"


def _downloads(training: Training) -> str:
    def source(name: str) -> str:
        return pieces.url("students", training.key, name)

    return (
        '<nav class="links" aria-label="files">'
        f'<a href="{source("student.safetensors")}?download" download>Weights</a>'
        f'<a href="{source("samples.png")}" target="_blank">Figure</a>'
        f'<a href="{source("history.png")}" target="_blank">Losses</a></nav>'
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _best(values: list[Any]) -> float | None:
    """The least of two and more."""
    numbers = [value for value in values if _is_number(value)]
    return min(numbers) if len(numbers) > 1 else None


def _cell(value: Any, best: float | None) -> str:
    if not _is_number(value):
        return "<td></td>"
    return f"<td{' class=best' if value == best else ''}>{value:.3g}</td>"
