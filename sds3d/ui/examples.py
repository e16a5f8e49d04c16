"""Meshes that came with the program: a click shows one at once, before anything is computed."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from sds3d.assets import shipped
from sds3d.config import clean_prompt
from sds3d.errors import PromptError
from sds3d.presets import PRESETS
from sds3d.progress import eta_text

LIST = "examples.json"
PREFIX = "example:"
"""Before an example's key, where a page would otherwise name a job."""

_FILE = re.compile(r"[a-z0-9][a-z0-9-]*\.(glb|png)")
_TYPES = {".glb": "model/gltf-binary", ".png": "image/png"}

ON_CLICK = """
element.addEventListener('click', (event) => {
  const chip = event.target.closest('button[data-example]');
  if (chip) trigger('click', { example: chip.dataset.example });
});
"""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A mesh with its thumbnail, and what it was made from."""

    prompt: str
    seed: int
    preset: str
    seconds: float
    faces: int
    device: str
    weights_sha256: str
    mesh: Path
    thumbnail: Path

    @property
    def key(self) -> str:
        """What a page calls it."""
        return PREFIX + self.mesh.stem


def load_examples(folder: Path | None = None) -> tuple[Example, ...]:
    """The examples listed in `folder`, by default those that ship with the program.

    Where there is no list, or it is none, there are no examples; one whose files are not there is
    left out.
    """
    folder = folder or shipped("examples")
    try:
        entries = json.loads((folder / LIST).read_text(encoding="utf-8"))["examples"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    found = [_example(folder, entry) for entry in entries] if isinstance(entries, list) else []
    return tuple(example for example in found if example is not None)


def _example(folder: Path, entry: Any) -> Example | None:
    try:
        names = entry["mesh"], entry["thumbnail"]
        if not all(_FILE.fullmatch(name) and (folder / name).is_file() for name in names):
            return None
        if entry["preset"] not in PRESETS:
            return None
        return Example(
            prompt=clean_prompt(entry["prompt"]),
            seed=int(entry["seed"]),
            preset=entry["preset"],
            seconds=float(entry["seconds"]),
            faces=int(entry["faces"]),
            device=str(entry["device"]),
            weights_sha256=str(entry["weights_sha256"]),
            mesh=folder / names[0],
            thumbnail=folder / names[1],
        )
    except (KeyError, TypeError, ValueError, PromptError):
        return None


def chips(examples: Sequence[Example]) -> str:
    """A button with a picture for each example; "" where there is none."""
    drawn = "".join(
        f'<button type="button" class="example" data-example="{html.escape(example.key)}">'
        f'<img src="/examples/{html.escape(example.thumbnail.name)}" alt="" loading="lazy">'
        f"<span>{html.escape(example.prompt)}</span></button>"
        for example in examples
    )
    return f'<nav class="examples" aria-label="examples">{drawn}</nav>' if drawn else ""


def status(example: Example) -> str:
    """The card at the head of an example."""
    faces = f"{example.faces:,}".replace(",", " ")
    facts = (
        f"seed {example.seed}, {example.preset} · {faces} faces · made in "
        f"{eta_text(example.seconds)} on {example.device}"
    )
    return (
        '<section class="status example"><h3><span class=state>Example</span> '
        f"{html.escape(example.prompt)}</h3><p class=facts>{html.escape(facts)}</p>"
        "<p class=health>It came with the program, small, made by the teacher "
        f"{html.escape(example.weights_sha256[:12])}. Generate makes it here, in full.</p>"
        "</section>"
    )


def downloads(example: Example) -> str:
    """The link to its file."""
    address = f"/examples/{html.escape(example.mesh.name)}?download"
    return (
        '<nav class="downloads" aria-label="downloads">'
        f'<a class="download" href="{address}" download>GLB</a></nav>'
    )


def routes(examples: Sequence[Example]) -> list[Route]:
    """`/examples/<name>`: the files of these examples and no others."""
    files = {path.name: path for e in examples for path in (e.mesh, e.thumbnail)}

    def endpoint(request: Request) -> Response:
        path = files.get(request.path_params["name"])
        if path is None:
            return PlainTextResponse("there is nothing here\n", 404)
        how = {"Cache-Control": "no-cache"}
        if "download" in request.query_params:
            how["Content-Disposition"] = f'attachment; filename="{path.name}"'
        return FileResponse(path, headers=how, media_type=_TYPES[path.suffix])

    return [Route("/examples/{name}", endpoint)]
