"""What became of a batch: manifest.jsonl, a line for each item, and index.html to look at it."""

from __future__ import annotations

import contextlib
import html
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from sds3d.atomic import write_atomic
from sds3d.batch.prompts import Line
from sds3d.batch.viewer import VIEWER, write_viewer
from sds3d.errors import RunError, output_error
from sds3d.jobs.job import Job
from sds3d.progress import eta_text
from sds3d.runs import RunFolder

_MADE = ("ok", "skipped")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One item as it ended; `folder` is below the batch's, `failures` how often it was retried."""

    line: int
    prompt: str
    seed: int
    preset: str
    outcome: str
    folder: str | None
    seconds: float | None
    failures: int
    error: str | None
    reason: str | None
    degraded: str | None

    @classmethod
    def of(cls, line: Line, job: Job, outcome: str) -> Row:
        return cls(
            line=line.number,
            prompt=line.config.prompt,
            seed=line.config.seed,
            preset=line.config.preset,
            outcome=outcome,
            folder=job.folder,
            seconds=job.seconds,
            failures=job.failures,
            error=job.error,
            reason=job.reason,
            degraded=job.degraded,
        )


class Report:
    """Rows are appended to the log as they come; at the end log and page are written anew."""

    def __init__(self, out: Path, name: str) -> None:
        self._out = out
        self._manifest = out / f"manifest{name}.jsonl"
        self._index = out / f"index{name}.html"
        self._rows: list[Row] = []
        self._is_behind = False

    def add(self, row: Row) -> None:
        """Take an item that ended, and make the viewer of its mesh.

        What the disk has no room for is left to the next row, or to `write`; a mesh without its
        viewer has its pictures.
        """
        begin = "w" if not self._rows else "a"
        self._rows.append(row)
        try:
            if self._is_behind:
                # The last line may be half a one.
                self._write_log()
            else:
                with self._manifest.open(begin, encoding="ascii") as file:
                    file.write(_json_line(row))
            self._is_behind = False
        except OSError:
            self._is_behind = True
        if row.folder is not None and row.outcome in _MADE:
            with contextlib.suppress(OSError):
                write_viewer(self._out / row.folder)

    def _write_log(self) -> None:
        write_atomic(self._manifest, "".join(map(_json_line, self._rows)).encode())

    def counts(self) -> Counter[str]:
        """How many rows have each outcome."""
        return Counter(row.outcome for row in self._rows)

    def write(self) -> Path:
        """Write the log in the order of the list, and the page; returns the page's path.

        Raises OutputError.
        """
        self._rows.sort(key=lambda row: row.line)
        try:
            self._write_log()
            write_atomic(self._index, self._page().encode())
        except OSError as error:
            raise output_error(error, self._out) from error
        return self._index

    def _page(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.counts().items()))
        cards = "\n".join(self._card(row) for row in self._rows)
        return _PAGE.format(counts=html.escape(counts), cards=cards)

    def _card(self, row: Row) -> str:
        title = f"<h2>{html.escape(row.prompt)}</h2>"
        facts = [row.outcome, f"line {row.line}", f"seed {row.seed}", row.preset]
        if row.seconds is not None and row.outcome != "skipped":
            facts.append(eta_text(row.seconds))
        picture = links = ""
        folder = None if row.folder is None else self._out / row.folder
        if folder is not None and row.outcome in _MADE:
            files, faces = _contents(folder)
            if faces is not None:
                facts.append(f"{faces} faces")
            picture = _picture(folder.name, files)
            names = [n for n in ("mesh.glb", "mesh.obj", "result.json") if n in files]
            links = " ".join(f'<a href="{_url(folder.name, name)}">{name}</a>' for name in names)
            if picture and (folder / VIEWER).is_file():
                links = f'<a class=viewer href="{_url(folder.name, VIEWER)}">3D</a> {links}'
        notes = [text for text in (row.degraded, row.reason) if text and row.outcome != "ok"]
        if row.degraded and row.outcome == "ok":
            notes.append(f"memory was short: {row.degraded}")
        said = "".join(f"<p class=note>{html.escape(text)}</p>" for text in notes)
        line = html.escape(" · ".join(facts))
        return (
            f'<article class="{html.escape(row.outcome)}">{picture}{title}'
            f"<p>{line}</p>{said}<p>{links}</p></article>"
        )


def _json_line(row: Row) -> str:
    return json.dumps(asdict(row)) + "\n"


def _contents(folder: Path) -> tuple[set[str], object]:
    """The names of a run's files, and its number of faces."""
    try:
        result = RunFolder.open(folder).result()
    except RunError:
        result = None
    if result is None:
        return set(), None
    mesh = result.get("mesh")
    faces = mesh.get("faces") if isinstance(mesh, dict) else None
    return {*result["files"], "result.json"}, faces


def _picture(folder: str, files: set[str]) -> str:
    """The turntable, which follows the pointer, before it the sheet of pictures."""
    poster = f' poster="{_url(folder, "preview.png")}"' if "preview.png" in files else ""
    if "turntable.mp4" in files:
        source = _url(folder, "turntable.mp4")
        return f'<video src="{source}"{poster} muted loop playsinline preload="none"></video>'
    if "preview.png" in files:
        return f'<img src="{_url(folder, "preview.png")}" loading="lazy" alt="">'
    return ""


def _url(*parts: str) -> str:
    return html.escape("/".join(quote(part) for part in parts))


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sds3d batch</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif; }}
body {{ margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }}
main {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); }}
article {{ border: 1px solid #8884; border-radius: .5rem; padding: .75rem; }}
article.failed, article.timeout, article.oom {{ border-color: #c33; }}
video, img {{ aspect-ratio: 1; background: #fff; border-radius: .25rem; cursor: ew-resize;
  object-fit: contain; width: 100%; }}
iframe {{ aspect-ratio: 1; border: 0; border-radius: .25rem; display: block; width: 100%; }}
h2 {{ font-size: 1rem; margin: .5rem 0 0; overflow-wrap: anywhere; }}
p {{ color: #888; font-size: .875rem; margin: .25rem 0; overflow-wrap: anywhere; }}
.note {{ color: #c33; }}
</style>
<h1>Batch</h1>
<p>{counts}. Drag across a picture to turn the object, or open it in 3D.</p>
<main>
{cards}
</main>
<script>
for (const film of document.querySelectorAll("video")) {{
  film.addEventListener("pointermove", (move) => {{
    if (film.preload === "none") {{ film.preload = "auto"; film.load(); }}
    if (!film.duration) return;
    const box = film.getBoundingClientRect();
    const share = Math.min(Math.max((move.clientX - box.left) / box.width, 0), 0.999);
    film.currentTime = share * film.duration;
  }});
}}
// One viewer at a time, in its picture's place: a browser draws in 3D on few canvases at once.
let shown = null;
document.addEventListener("click", (event) => {{
  const link = event.target.closest("a.viewer");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const before = shown;
  if (before) {{ before.frame.replaceWith(before.picture); before.link.textContent = "3D"; }}
  shown = null;
  if (before && before.link === link) return;
  const picture = link.closest("article").querySelector("video, img");
  const frame = document.createElement("iframe");
  frame.title = "3D viewer";
  frame.src = link.href;
  picture.replaceWith(frame);
  link.textContent = "picture";
  shown = {{ link, picture, frame }};
}});
</script>
</html>
"""
