"""The whole page."""

from __future__ import annotations

import gradio as gr

from sds3d.ui.api import Api
from sds3d.ui.desk import Desk
from sds3d.ui.distillation import Distillation
from sds3d.ui.gallery import TEXT_TAB, Gallery
from sds3d.ui.shipped import shipped_teachers
from sds3d.ui.taxonomy import Catalogue
from sds3d.ui.text_to_3d import TextTo3D
from sds3d.ui.theme import TITLE
from sds3d.ui.trainings import Trainings

HEAD = """
# sds3d

Type a prompt, get a textured 3D mesh: made here, on this machine, without a network.
"""


def build_app(
    desk: Desk,
    trainings: Trainings,
    *,
    catalogue: Catalogue | None = None,
    any_teacher: bool = False,
) -> gr.Blocks:
    """The page of a desk. With `any_teacher`, visitors may name a teacher's folder."""
    # What gradio serves are copies; they go after a day.
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 86400)) as demo:
        # First, so that its names are not taken by handlers of the page.
        Api(desk).build()
        gr.Markdown(HEAD, elem_id="head")
        text = TextTo3D(desk, list(shipped_teachers()), any_teacher=any_teacher)
        with gr.Tabs() as tabs:
            with gr.Tab("Text to 3D", id=TEXT_TAB):
                text.build(demo)
            with gr.Tab("Distillation", id="distillation") as tab:
                Distillation(catalogue or Catalogue(), trainings).build(tab)
            with gr.Tab("Gallery", id="gallery") as tab:
                Gallery(desk, text).build(tab, tabs)

    return demo.queue(max_size=64)
