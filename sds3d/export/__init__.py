"""Files for the user: GLB, OBJ, turntable and contact sheet, each whole or absent."""

from sds3d.export.atomic import DiskFullError, ExportError, NotWritableError
from sds3d.export.contact_sheet import contact_sheet, export_contact_sheet
from sds3d.export.gate import MeshRejectedError, MeshReport, check_mesh, normalise
from sds3d.export.glb import export_glb
from sds3d.export.obj import export_obj
from sds3d.export.package import Exported, Format, export_mesh, export_pictures
from sds3d.export.turntable import export_turntable
from sds3d.export.views import render_orbit

__all__ = [
    "DiskFullError",
    "ExportError",
    "Exported",
    "Format",
    "MeshRejectedError",
    "MeshReport",
    "NotWritableError",
    "check_mesh",
    "contact_sheet",
    "export_contact_sheet",
    "export_glb",
    "export_mesh",
    "export_obj",
    "export_pictures",
    "export_turntable",
    "normalise",
    "render_orbit",
]
