"""The endpoints, through gradio_client; the document's own snippet among them."""

# The client's answers are typed as anything it might ever return.
# pyright: reportArgumentType=false, reportOptionalSubscript=false
# pyright: reportPossiblyUnboundVariable=false

import dataclasses
import re
import struct
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.error import HTTPError

import gradio as gr
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from sds3d.config import GenerateConfig, PresetName
from sds3d.presets import generate_config, with_teacher
from sds3d.ui.api import Api
from sds3d.ui.config import AppConfig
from sds3d.ui.serve import Served, serving

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"


def _wait(client: Client, job: str) -> dict[str, object]:
    for _ in range(600):
        status = client.predict(job, api_name="/status")
        if status["finished"]:
            return status
    raise AssertionError(f"still {status}")


@pytest.fixture(scope="module")
def client(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    downloads = tmp_path_factory.mktemp("downloads")
    made = Client(server.url, verbose=False, download_files=str(downloads))
    yield made
    made.close()


def test_the_snippet_of_the_document_runs(server: Served, tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 1
    code = snippets[0].replace("http://127.0.0.1:7860", server.url)
    assert server.url in code
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    mesh, faces = re.findall(r"^(.*\.glb): (\d+) faces$", ran.stdout, re.MULTILINE)[0]
    assert int(faces) > 0
    magic, version = struct.unpack("<4sI", Path(mesh).read_bytes()[:8])
    assert (magic, version) == (b"glTF", 2)


def test_every_endpoint_of_the_document_exists_and_no_other(client: Client) -> None:
    documented = set(
        re.findall(r"^\| `/(\w+)`", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    )
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert {name.removeprefix("/") for name in named} == documented


def test_a_run_is_stopped_continued_found_and_downloaded(client: Client) -> None:
    job = client.predict(prompt="a red mushroom", preset="fast", steps=4000, api_name="/submit")
    while client.predict(job, api_name="/status")["step"] < 3:
        pass
    client.predict(job, api_name="/stop")
    status = _wait(client, job)
    assert status["state"] == "stopped"
    result = client.predict(job, api_name="/result")
    assert 3 <= result["steps"] < 4000
    packed = client.predict(job, "mesh-obj.zip", api_name="/download")
    assert "mesh.obj" in zipfile.ZipFile(packed).namelist()
    assert client.predict(job, 0, api_name="/continue_run") == "queued"
    client.predict(job, api_name="/cancel")
    assert _wait(client, job)["state"] == "stopped"
    assert job in [found["id"] for found in client.predict("RED mush", 5, api_name="/jobs")]


def test_mistakes_come_back_as_sentences(client: Client) -> None:
    with pytest.raises(AppError, match="the prompt is empty"):
        client.predict(prompt=" ", api_name="/submit")
    with pytest.raises(AppError, match="no job 'nothing'"):
        client.predict("nothing", api_name="/status")
    with pytest.raises(AppError, match="--steps"):
        client.predict(prompt="a red mushroom", steps=10**6, api_name="/submit")
    job = client.predict(prompt="a red mushroom", preset="fast", steps=5, api_name="/submit")
    _wait(client, job)
    for name in ("../../jobs.sqlite3", "events.jsonl", "/etc/hostname", ""):
        with pytest.raises(AppError, match="no file of that name"):
            client.predict(job, name, api_name="/download")


@pytest.mark.parametrize(
    ("endpoint", "given", "named"),
    [
        ("/submit", {"prompt": 5}, "prompt is 5: give text"),
        ("/submit", {"prompt": ["a"]}, r"prompt is \['a'\]: give text"),
        ("/submit", {"negative_prompt": {}}, "negative_prompt is {}"),
        ("/submit", {"preset": ["fast"]}, "preset is .* give text"),
        ("/submit", {"preset": "slow"}, "the preset is 'slow'"),
        ("/submit", {"teacher": 1}, "teacher is 1"),
        ("/submit", {"seed": "1"}, "seed is '1': give a whole number"),
        ("/submit", {"seed": 1.5}, "seed is 1.5"),
        ("/submit", {"steps": "many"}, "steps is 'many'"),
        ("/submit", {"guidance_scale": [1]}, "guidance_scale is"),
        ("/submit", {"resolution": "big"}, "resolution is 'big'"),
        ("/submit", {"options": ["csd"]}, "options are no object"),
        ("/submit", {"options": {"refine_steps": "1"}}, "refine_steps is '1'"),
        ("/submit", {"options": {"no_such": 1}}, "no_such"),
        ("/status", {"job": 5}, "job is 5: give text"),
        ("/stop", {"job": None}, "job is None"),
        ("/continue_run", {"job": [1]}, "job is "),
        ("/jobs", {"search": 1}, "search is 1"),
        ("/jobs", {"limit": "all"}, "limit is 'all'"),
    ],
)
def test_a_value_of_a_wrong_type_is_named(
    server: Served, endpoint: str, given: dict[str, Any], named: str
) -> None:
    api = Api(server.desk)
    if endpoint == "/submit":
        given = {"prompt": "a red mushroom", **given}
    with pytest.raises(gr.Error, match=named) as refused:
        getattr(api, endpoint.removeprefix("/"))(**given)
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 500


@pytest.mark.parametrize("preset", get_args(PresetName))
def test_a_teacher_that_is_left_out_is_the_presets(
    server: Served, monkeypatch: pytest.MonkeyPatch, preset: PresetName
) -> None:
    class Submitted(Exception):
        pass

    def submit(config: GenerateConfig, **_: object) -> None:
        raise Submitted(config)

    monkeypatch.setattr(server.desk.service, "submit", submit)
    with pytest.raises(Submitted) as made:
        Api(server.desk).submit("a red mushroom", preset=preset)
    expected = generate_config(preset, prompt="a red mushroom")
    optimize = with_teacher(expected.optimize, expected.teacher)
    assert made.value.args[0] == dataclasses.replace(expected, optimize=optimize)
    with pytest.raises(Submitted) as made:
        Api(server.desk).submit("a red mushroom", preset=preset, teacher="toybox-guided")
    assert made.value.args[0].teacher == "toybox-guided"


def test_a_password_is_needed_for_all_of_it(tmp_path: Path) -> None:
    config = AppConfig(port=0, out=tmp_path, auth="ann:secret")
    # No job is begun: the worker may be anything that waits.
    waits = (sys.executable, "-c", "import time; time.sleep(60)")
    with serving(config, worker_command=waits) as served:
        with pytest.raises(HTTPError, match="401"):
            urllib.request.urlopen(served.url)
        headers = {"Authorization": "Basic YW5uOnNlY3JldA=="}
        client = Client(served.url, verbose=False, headers=headers)
        assert client.predict("", 5, api_name="/jobs") == []
        client.close()
