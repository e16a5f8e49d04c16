"""Wavefront OBJ with its material file and texture, under names no other export shares."""

import hashlib
import re
from pathlib import Path

import numpy as np

from nerf.mesh.textured_mesh import TexturedMesh
from sds3d.export.atomic import NotWritableError, export_error, write_bytes
from sds3d.export.gate import check_mesh
from sds3d.export.glb import png_bytes

# Characters that cannot be misread in an mtllib or map_Kd line, where names end at white space.
SAFE_STEM = re.compile(r"[A-Za-z0-9._-]+")


def export_obj(mesh: TexturedMesh, path: Path) -> dict[str, str]:
    """Check the mesh and write `path`, its .mtl and its .png; returns {path: sha256}.

    The companions are called <stem>-<key>.mtl and <stem>-<key>.png, with the key taken from the
    content, and are written first: at every moment the .obj that stands there refers to companions
    that are whole and its own. Companions of the .obj that was replaced are removed. Vertex
    colours follow the positions in the "v" lines (sRGB); a mesh with those alone has no material,
    because several readers ignore them where one is named. Raises MeshRejectedError, ExportError,
    or ValueError for a name that OBJ cannot refer to.
    """
    if not SAFE_STEM.fullmatch(path.stem):
        raise ValueError(
            f"the name {path.stem!r} cannot be referred to in an OBJ file; use letters, digits, "
            "dot, dash and underscore."
        )
    check_mesh(mesh)
    replaced = _companions(path)
    hashes: dict[str, str] = {}
    material_name = None
    if mesh.texture is not None:
        picture = png_bytes(mesh.texture)
        key = hashlib.sha256(picture).hexdigest()[:12]
        texture_path = path.with_name(f"{path.stem}-{key}.png")
        material_path = path.with_name(f"{path.stem}-{key}.mtl")
        material_name = material_path.name
        hashes[str(texture_path)] = write_bytes(texture_path, picture)
        material = _material_text(texture_path.name)
        hashes[str(material_path)] = write_bytes(material_path, material.encode())
    hashes[str(path)] = write_bytes(path, obj_text(mesh, material_name).encode())
    for companion in replaced:
        if str(companion) not in hashes:
            companion.unlink(missing_ok=True)
    return hashes


def obj_text(mesh: TexturedMesh, material_name: str | None) -> str:
    """The .obj file. OBJ counts from 1, and its v coordinate grows upward, from the bottom."""
    lines = ["# sds3d, +Y up, front +Z, metres\n"]
    if material_name is not None:
        lines.append(f"mtllib {material_name}\n")
    lines.append("o mesh\n")
    vertices: np.ndarray = mesh.vertices
    if mesh.vertex_colors is not None:
        vertices = np.concatenate([mesh.vertices, mesh.vertex_colors], axis=1)
    lines.append(_rows("v", vertices))
    if mesh.uv is not None:
        uv = mesh.uv.astype(np.float64)
        lines.append(_rows("vt", np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)))
    lines.append(_rows("vn", mesh.normals))
    lines.append("s 1\n" if material_name is None else "usemtl surface\ns 1\n")
    corner = "{0}/{0}/{0}" if mesh.uv is not None else "{0}//{0}"
    names = [corner.format(i + 1) for i in range(len(mesh.vertices))]
    lines.extend(f"f {names[a]} {names[b]} {names[c]}\n" for a, b, c in mesh.faces.tolist())
    return "".join(lines)


def _rows(keyword: str, values: np.ndarray) -> str:
    # Nine significant digits give every float32 back exactly.
    template = keyword + " %.9g" * values.shape[1] + "\n"
    return "".join(template % tuple(row) for row in values.tolist())


def _material_text(texture_name: str) -> str:
    # Readers differ in what they assume for a missing line (0, 0.4, 0.8), so all are given.
    return (
        "newmtl surface\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nKe 0 0 0\nNs 0\nNi 1\nd 1\nillum 1\n"
        f"Pm 0\nPr 0.9\nmap_Kd {texture_name}\n"
    )


def _companions(path: Path) -> set[Path]:
    """The keyed files of its own that the .obj now standing at `path` refers to."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            head = [file.readline(512) for _ in range(4)]
    except FileNotFoundError:
        return set()
    except NotADirectoryError as error:
        raise NotWritableError(str(error)) from error
    except OSError as error:
        raise export_error(path, error) from error
    own = re.compile(rf"mtllib ({re.escape(path.stem)}-[0-9a-f]{{12}})\.mtl")
    for line in head:
        found = own.fullmatch(line.strip())
        if found:
            return {path.with_name(found[1] + suffix) for suffix in (".mtl", ".png")}
    return set()
