"""The teacher's own pictures of a prompt, drawn by a process of its own."""

from __future__ import annotations

import base64
import html
import tempfile
from pathlib import Path

from sds3d.preview import PreviewConfig
from sds3d.ui.pieces import notice
from sds3d.ui.processes import Processes

TIMEOUT_SECONDS = 180.0


def draw(processes: Processes, config: PreviewConfig) -> str:
    """A picture of four sides as HTML, with what the teacher remarks about the prompt.

    Raises CommandFailed with the reason where nothing could be drawn.
    """
    with tempfile.TemporaryDirectory(prefix="sds3d-preview-") as folder:
        words = ["preview", "--out", folder, "--seed", str(config.seed)]
        words += ["--teacher", config.teacher, "--guidance-scale", str(config.guidance_scale)]
        words += ["--sample-steps", str(config.sample_steps)]
        words += [f"--negative-prompt={config.negative_prompt}", "--", config.prompt]
        events = processes.run(words, timeout_seconds=TIMEOUT_SECONDS)
        notes = [notice(e["text"], "warning") for e in events if e["event"] == "warning"]
        pictures = [Path(e["path"]) for e in events if e["event"] == "preview"]
        data = base64.b64encode(pictures[-1].read_bytes()).decode()
    alt = html.escape(f"the teacher's idea of {config.prompt}: front, side, back, above")
    picture = f'<img src="data:image/png;base64,{data}" alt="{alt}">'
    return f'{"".join(notes)}<div class="teacher-preview">{picture}</div>'
