"""Binary glTF 2.0: one mesh, one material, everything in one file.

Written here rather than with trimesh, which stores COLOR_0 in 8 bits and unconverted, whereas glTF
wants it linear (and 8 linear bits are coarser than sRGB's in the dark).
"""

import io
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from nerf.mesh.textured_mesh import TexturedMesh
from sds3d.export.atomic import write_bytes
from sds3d.export.gate import check_mesh

FLOAT, UNSIGNED_INT, UNSIGNED_SHORT = 5126, 5125, 5123
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071


def export_glb(mesh: TexturedMesh, path: Path) -> dict[str, str]:
    """Check the mesh and write it as `path`, atomically; returns {path: sha256}.

    Material: metallic 0, roughness 0.9, white base colour factor, times the texture (sRGB) or the
    vertex colours (linear). Raises MeshRejectedError or ExportError.
    """
    check_mesh(mesh)
    return {str(path): write_bytes(path, glb_bytes(mesh))}


def glb_bytes(mesh: TexturedMesh) -> bytes:
    """The mesh as the bytes of a .glb file; the same mesh always gives the same bytes."""
    binary = bytearray()
    views: list[dict[str, int]] = []
    accessors: list[dict[str, object]] = []

    def add_view(data: bytes, target: int | None = None) -> int:
        binary.extend(b"\0" * (-len(binary) % 4))
        view = {"buffer": 0, "byteOffset": len(binary), "byteLength": len(data)}
        if target is not None:
            view["target"] = target
        binary.extend(data)
        views.append(view)
        return len(views) - 1

    def add_accessor(array: np.ndarray, component: int, kind: str, target: int, **extra) -> int:
        little_endian = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
        accessors.append(
            {
                "bufferView": add_view(little_endian.tobytes(), target),
                "componentType": component,
                "count": len(array),
                "type": kind,
                **extra,
            }
        )
        return len(accessors) - 1

    position = mesh.vertices.astype(np.float32)
    normal = mesh.normals.astype(np.float64)
    normal = (normal / np.linalg.norm(normal, axis=1, keepdims=True)).astype(np.float32)
    attributes = {
        "POSITION": add_accessor(
            position,
            FLOAT,
            "VEC3",
            ARRAY_BUFFER,
            min=[float(x) for x in position.min(axis=0)],
            max=[float(x) for x in position.max(axis=0)],
        ),
        "NORMAL": add_accessor(normal, FLOAT, "VEC3", ARRAY_BUFFER),
    }
    pbr: dict[str, object] = {
        "baseColorFactor": [1.0, 1.0, 1.0, 1.0],
        "metallicFactor": 0.0,
        "roughnessFactor": 0.9,
    }
    document: dict[str, object] = {
        "asset": {"version": "2.0", "generator": "sds3d"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "mesh"}],
        "materials": [{"name": "surface", "pbrMetallicRoughness": pbr}],
    }
    if mesh.uv is not None and mesh.texture is not None:
        uv = mesh.uv.astype(np.float32)
        attributes["TEXCOORD_0"] = add_accessor(uv, FLOAT, "VEC2", ARRAY_BUFFER)
        pbr["baseColorTexture"] = {"index": 0}
        image = add_view(png_bytes(mesh.texture))
        document["images"] = [{"bufferView": image, "mimeType": "image/png", "name": "albedo"}]
        document["samplers"] = [
            {
                "magFilter": LINEAR,
                "minFilter": LINEAR_MIPMAP_LINEAR,
                "wrapS": CLAMP_TO_EDGE,
                "wrapT": CLAMP_TO_EDGE,
            }
        ]
        document["textures"] = [{"source": 0, "sampler": 0}]
    if mesh.vertex_colors is not None:
        # 16 bits with alpha: four components keep every element aligned to four bytes.
        rgba = np.full((len(position), 4), 65535, dtype=np.uint16)
        rgba[:, :3] = np.round(srgb_to_linear(mesh.vertex_colors) * 65535).astype(np.uint16)
        attributes["COLOR_0"] = add_accessor(
            rgba, UNSIGNED_SHORT, "VEC4", ARRAY_BUFFER, normalized=True
        )
    indices = add_accessor(
        mesh.faces.astype(np.uint32).reshape(-1), UNSIGNED_INT, "SCALAR", ELEMENT_ARRAY_BUFFER
    )
    primitive = {"attributes": attributes, "indices": indices, "material": 0, "mode": 4}
    document["meshes"] = [{"name": "mesh", "primitives": [primitive]}]
    binary.extend(b"\0" * (-len(binary) % 4))
    document["accessors"] = accessors
    document["bufferViews"] = views
    document["buffers"] = [{"byteLength": len(binary)}]
    # allow_nan=False: JSON has no NaN, though Python would write one.
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    chunks = (
        struct.pack("<I4s", len(text), b"JSON")
        + text
        + struct.pack("<I4s", len(binary), b"BIN\0")
        + bytes(binary)
    )
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def png_bytes(image: np.ndarray) -> bytes:
    """An [H, W, 3] uint8 image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def srgb_to_linear(srgb: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1's decoding, on values in [0, 1]."""
    x = np.clip(srgb.astype(np.float64), 0.0, 1.0)
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1's encoding, on values in [0, 1]; the inverse of srgb_to_linear."""
    x = np.clip(linear.astype(np.float64), 0.0, 1.0)
    return np.where(x <= 0.0031308, x * 12.92, 1.055 * x ** (1 / 2.4) - 0.055)
