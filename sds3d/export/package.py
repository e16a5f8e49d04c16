"""Everything a run hands to its user, from one mesh."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nerf.mesh.textured_mesh import TexturedMesh
from sds3d.export.contact_sheet import export_contact_sheet
from sds3d.export.gate import MeshReport, check_mesh, normalise
from sds3d.export.glb import export_glb
from sds3d.export.obj import export_obj
from sds3d.export.turntable import export_turntable
from sds3d.export.views import render_orbit

Format = Literal["glb", "obj"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """files: {path: sha256}, everything written. report: the gate's figures."""

    files: dict[str, str]
    report: MeshReport


def export_mesh(
    mesh: TexturedMesh, folder: Path, *, formats: Sequence[Format] = ("glb",), stem: str = "mesh"
) -> Exported:
    """Normalise, check and write `folder`/<stem>.glb and/or .obj. The folder must exist."""
    writers = {"glb": export_glb, "obj": export_obj}
    if not formats or any(name not in writers for name in formats):
        raise ValueError(f'formats must be some of "glb" and "obj", got {list(formats)}.')
    mesh = normalise(mesh)
    report = check_mesh(mesh)
    files: dict[str, str] = {}
    for name in dict.fromkeys(formats):
        files |= writers[name](mesh, folder / f"{stem}.{name}")
    return Exported(files=files, report=report)


def export_pictures(
    mesh: TexturedMesh, folder: Path, *, size: int = 256, turntable_frames: int = 48
) -> dict[str, str]:
    """Write `folder`/preview.png (8 views) and turntable.mp4 of the mesh; {path: sha256}."""
    files = export_contact_sheet(render_orbit(mesh, views=8, size=size), folder / "preview.png")
    film = render_orbit(mesh, views=turntable_frames, size=size)
    return files | export_turntable(film, folder / "turntable.mp4")
