"""A page on which a mesh is turned by hand: all is in the file, it asks for nothing elsewhere.

It is trimesh's, with the three.js (MIT) that this brings, and opens from a disk without a server.
"""

from __future__ import annotations

import math
from pathlib import Path

from sds3d.atomic import write_atomic

VIEWER = "viewer.html"
"""The page's name in a run's folder. No file of the run: result.json does not speak of it."""
ELEVATION_DEG, AZIMUTH_DEG = 20.0, 30.0
"""From where the object is seen at first."""
FOVY_DEG = 40.0


def write_viewer(folder: Path) -> bool:
    """Write the page for `mesh.glb` in a run's folder unless it is there; whether there is one.

    There is none where the file is no mesh that can be read. Raises OSError where it cannot be
    written.
    """
    mesh, page = folder / "mesh.glb", folder / VIEWER
    try:
        made = mesh.stat().st_mtime_ns
    except OSError:
        return False
    # A mesh that was exported anew is younger.
    if page.is_file() and page.stat().st_mtime_ns >= made:
        return True
    html = _page(mesh)
    if html is None:
        return False
    write_atomic(page, html.encode())
    return True


def _page(mesh: Path) -> str | None:
    import numpy as np
    import trimesh
    from trimesh.viewer import scene_to_html

    try:
        scene = trimesh.load_scene(mesh)
        if scene.is_empty:
            return None
    except Exception:
        # Its readers name what is wrong with a file in many ways; the pictures are still there.
        return None
    radius = float(np.linalg.norm(scene.extents)) / 2
    scene.set_camera(
        angles=(math.radians(-ELEVATION_DEG), math.radians(AZIMUTH_DEG), 0.0),
        distance=radius / math.sin(math.radians(FOVY_DEG) / 2),
        center=scene.bounds.mean(axis=0),
        fov=(FOVY_DEG, FOVY_DEG),
    )
    return scene_to_html(scene).replace("</body>", f"<script>{_LIGHT}</script></body>")


# The page's own light is for colours that are shown as they are stored: here they are shown in
# sRGB, and a surface that faces the camera in the colour that its texture has.
_LIGHT = """
renderer.outputEncoding = THREE.sRGBEncoding;
tracklight.intensity = 0.7;
scene.add(new THREE.AmbientLight(0xffffff, 0.3));
"""
