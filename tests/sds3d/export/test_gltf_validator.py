"""The Khronos validator on what we export: a judge that shares nothing with the writer."""

import json
import subprocess
from pathlib import Path

import pytest

from nerf.mesh import TexturedMesh
from sds3d.export import export_glb, export_mesh

pytestmark = pytest.mark.node
ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
const validator = require("gltf-validator"), fs = require("fs");
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])))
  .then(report => console.log(JSON.stringify(report)));
"""


@pytest.fixture(scope="module")
def validate():
    """The validator's report on a file; where node or the package lack, the marker skips."""

    def report(path: Path) -> dict:
        done = subprocess.run(
            ["node", "-e", SCRIPT, str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return report


@pytest.mark.parametrize("colors", ["textured_mesh", "colored_mesh", "tetrahedron"])
def test_exported_files_are_valid(validate, tmp_path, request, colors):
    mesh: TexturedMesh = request.getfixturevalue(colors)
    export_mesh(mesh, tmp_path, formats=("glb",))
    report = validate(tmp_path / "mesh.glb")
    assert report["issues"]["messages"] == []
    assert report["issues"]["numErrors"] == report["issues"]["numWarnings"] == 0
    assert report["info"]["totalTriangleCount"] == len(mesh.faces)
    assert report["info"]["hasTextures"] == (mesh.texture is not None)


def test_the_validator_would_notice(validate, tetrahedron: TexturedMesh, tmp_path):
    """A file that claims one index too many: the judge is awake."""
    path = tmp_path / "mesh.glb"
    export_glb(tetrahedron, path)
    data = path.read_bytes()
    assert data.count(b'"count":12') == 1
    path.write_bytes(data.replace(b'"count":12', b'"count":15'))
    assert validate(path)["issues"]["numErrors"] > 0
