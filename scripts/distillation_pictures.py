"""Pictures of the students of distillation_table.py: one each, and a sheet of all for the docs."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from core.distillation.method import Distillation, StudentKind
from core.distillation.students import sample_by_solver
from core.solvers.ddim import DDIM
from sds3d.distill.catalogue import METHODS
from sds3d.distill.digits import CLASSES
from sds3d.distill.frames import Frames
from sds3d.distill.grounds import NamedGround
from sds3d.distill.measure import conditioning

SAMPLES = {"mixture": 400, "mixture-1d": 400, "digits": 50, "clouds": 6}
SEED = 4
TILE, HEAD = {"mixture": 216, "mixture-1d": 216, "digits": 240, "clouds": 216}, 20
COLUMNS = 5


@torch.no_grad()
def draw_one(ground: NamedGround, method: Distillation | None, nfe: int, path: Path) -> None:
    """Write what the student, or the teacher by DDIM, makes of one noise in `nfe` evaluations.

    Mixtures with the way there, digits by class.
    """
    n = SAMPLES[ground.name]
    generator = torch.Generator().manual_seed(SEED)
    cond = conditioning(ground, n, generator, method)
    if method is None:
        x = ground.ground.noise(n, generator)
        states = sample_by_solver(ground.ground.teacher, DDIM(), x, ground.ground.grid(nfe), cond)
    else:
        states = method.sample(method.noise(n, generator), nfe, cond, generator)
    if ground.name == "digits" and cond is not None and cond.labels is not None:
        order = cond.labels.remainder(CLASSES + 1).argsort(stable=True)
        states = [state[order] for state in states]
    has_paths = method is None or method.card.student is not StudentKind.GENERATOR
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(Frames(ground, has_paths=has_paths).draw(states))


def sheet(ground: str, folder: Path, path: Path) -> list[str]:
    """Write all pictures in `folder`, named NAME-NFE.png, as one; returns the names, in its order.

    In the order of the catalogue, the teacher first.
    """
    order = ["teacher", *(method.card.name for method in METHODS)]
    found = sorted(
        folder.glob("*.png"), key=lambda one: (order.index(_name(one)[0]), _name(one)[1])
    )
    if not found:
        return []
    width = TILE[ground]
    images = []
    for one in found:
        with Image.open(one) as frame:
            scale = width / frame.width
            images.append(frame.convert("RGBA").resize((width, round(frame.height * scale))))
    height = max(image.height for image in images) + HEAD
    rows = -(-len(images) // COLUMNS)
    made = Image.new("RGBA", (COLUMNS * width, rows * height), "white")
    pen = ImageDraw.Draw(made)
    font = ImageFont.load_default(12)
    for k, (one, image) in enumerate(zip(found, images, strict=True)):
        corner = k % COLUMNS * width, k // COLUMNS * height
        made.alpha_composite(image, (corner[0], corner[1] + HEAD))
        pen.text(
            (corner[0] + 4, corner[1] + 3), "{}, {}".format(*_name(one)), fill="black", font=font
        )
    packed = io.BytesIO()
    made.convert("RGB").quantize(64).save(packed, "PNG", optimize=True)
    path.write_bytes(packed.getvalue())
    return [_name(one)[0] for one in found]


def _name(path: Path) -> tuple[str, int]:
    """Method and number of evaluations of a picture."""
    name, _, nfe = path.stem.rpartition("-")
    return name, int(nfe)
