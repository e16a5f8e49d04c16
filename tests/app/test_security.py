"""Who is let in, and to which files: the whole application behind its guard."""

import base64
import io
import json
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from sds3d.jobs.job import Job
from sds3d.ui.security import Guard
from sds3d.ui.serve import Served

HOST = "127.0.0.1:7860"


def _guard(
    host: str = "127.0.0.1", auth: str | None = None, trusted: tuple[str, ...] = ()
) -> Guard:
    async def nothing(*_: Any) -> None:
        raise AssertionError

    return Guard(nothing, host=host, auth=auth, trusted=trusted)


def _status(guard: Guard, path: str = "/config", method: str = "GET", **headers: str) -> int:
    given = {"host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
    refusal = guard.refusal(method, path, given)
    return 200 if refusal is None else int(refusal[0])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (HOST, 200),
        ("localhost:7860", 200),
        ("[::1]:7860", 200),
        ("LOCALHOST", 200),
        ("evil.example:7860", 421),
        ("127.0.0.1.evil.example", 421),
        ("192.168.1.7:7860", 421),
        ("evil.example@127.0.0.1", 421),
        ("", 421),
    ],
)
def test_only_names_of_this_machine_are_answered(host: str, status: int) -> None:
    assert _status(_guard(), host=host) == status


def test_an_open_server_answers_to_its_numbers_and_not_to_any_name() -> None:
    guard = _guard("0.0.0.0")
    assert _status(guard, host="192.168.1.7:7860") == 200
    assert _status(guard, host="evil.example") == 421


@pytest.mark.parametrize("listens", ["127.0.0.1", "0.0.0.0"])
def test_a_name_that_is_trusted_is_answered_and_no_other_that_looks_like_it(listens: str) -> None:
    guard = _guard(listens, trusted=("Mesh.example.org", "other.example"))
    for host in ("mesh.example.org", "MESH.example.org:443", "other.example"):
        assert _status(guard, host=host) == 200
        assert _status(guard, host=host, origin=f"https://{host}") == 200
        assert _status(guard, "/config", "POST", host=host, origin="https://evil.example") == 403
    for host in ("evil.example", "example.org", "mesh.example.org.evil.example"):
        assert _status(guard, host=host) == 421


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/gradio_api/queue/join", {"sec_fetch_site": "same-origin"}, 200),
        ("POST", "/gradio_api/queue/join", {}, 200),
        ("POST", "/gradio_api/queue/join", {"sec_fetch_site": "cross-site"}, 403),
        # Another port of this machine.
        ("POST", "/gradio_api/queue/join", {"sec_fetch_site": "same-site"}, 403),
        ("POST", "/gradio_api/queue/join", {"origin": "http://evil.example"}, 403),
        ("POST", "/gradio_api/queue/join", {"origin": "http://127.0.0.1:9999"}, 403),
        ("POST", "/gradio_api/queue/join", {"origin": "null"}, 403),
        ("POST", "/gradio_api/queue/join", {"origin": f"http://{HOST}"}, 200),
        ("GET", "/config", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, 403),
        ("GET", "/", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 200),
        ("POST", "/", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 403),
        (
            "GET",
            "/",
            {
                "sec_fetch_site": "cross-site",
                "sec_fetch_mode": "navigate",
                "sec_fetch_dest": "iframe",
            },
            403,
        ),
    ],
)
def test_other_sites_may_link_here_and_nothing_else(
    method: str, path: str, headers: dict[str, str], status: int
) -> None:
    assert _status(_guard(), path, method, **headers) == status


def test_the_password_is_asked_for_everywhere() -> None:
    guard = _guard(auth="ann:söcret:more")

    def sent(word: str, kind: str = "Basic") -> str:
        return f"{kind} {base64.b64encode(word.encode()).decode()}"

    for path in ("/", "/config", "/jobs/x/mesh.glb", "/gradio_api/queue/join"):
        assert _status(guard, path) == 401
        assert _status(guard, path, authorization=sent("ann:söcret:more")) == 200
        assert _status(guard, path, authorization=sent("ann:other")) == 401
        assert _status(guard, path, authorization=sent("ann:söcret:more", "Bearer")) == 401
        assert _status(guard, path, authorization="Basic %%%") == 401


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/upload",
        "/gradio_api/file=https://example.org/x",
        "/gradio_api/file=http:/example.org",
        "/gradio_api/file=https%3A%2F%2Fexample.org",
        "/gradio_api/proxy=https://example.org",
        "/gradio_api/component_server",
    ],
)
def test_routes_of_no_use_are_shut(path: str) -> None:
    assert _status(_guard(), path, "POST") == 404


@dataclass
class Answer:
    status: int
    headers: Message
    content: bytes


Get = Callable[..., Answer]


@pytest.fixture
def get(server: Served) -> Get:
    """Ask the server as no browser would: the path is sent as it is."""
    address = urlsplit(server.url).netloc

    def ask(path: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        connection = HTTPConnection(address, timeout=30)
        sent = {"Host": address, **headers}
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    return ask


def test_the_page_is_whole_and_speaks_of_no_other_place(server: Served, get: Get) -> None:
    page = get("/")
    assert page.status == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"
    assert b"fonts.googleapis" not in page.content
    assert json.loads(get("/config").content)["analytics_enabled"] is False
    assert get("/", Host="evil.example").status == 421
    own = get("/config", Origin=server.url.rstrip("/"))
    assert own.status == 200
    assert "access-control-allow-origin" not in own.headers


def test_a_job_serves_the_files_of_its_result_and_no_others(
    server: Served, get: Get, finish: Callable[..., Job]
) -> None:
    job = finish()
    folder = server.desk.service.folder(job)
    assert folder is not None
    (folder / "secret.png").write_bytes(b"secret")
    for name in ("mesh.glb", "mesh.obj", "preview.png", "turntable.mp4", "result.json"):
        answer = get(f"/jobs/{job.id}/{name}")
        assert answer.status == 200
        assert answer.content == (folder / name).read_bytes()
    assert get(f"/jobs/{job.id}/growing.png").status == 200
    saved = get(f"/jobs/{job.id}/mesh.glb?download")
    assert "a-red-mushroom-mesh.glb" in saved.headers["content-disposition"]
    packed = get(f"/jobs/{job.id}/mesh-obj.zip")
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert archive.read("mesh.obj") == (folder / "mesh.obj").read_bytes()
    for name in (
        "secret.png",
        "events.jsonl",
        "../../jobs.sqlite3",
        "..%2F..%2Fjobs.sqlite3",
        "..%2Fjobs.sqlite3",
        "%2e%2e%2fjobs.sqlite3",
        "%252e%252e%252fjobs.sqlite3",
        "..",
        str(folder / "mesh.glb").replace("/", "%2F"),
    ):
        answer = get(f"/jobs/{job.id}/{name}")
        assert answer.status == 404, name
        assert b"SQLite" not in answer.content
    assert get("/jobs/unknown/mesh.glb").status == 404


def test_a_picture_that_is_replaced_while_it_is_sent_arrives_whole(
    server: Served, get: Get, finish: Callable[..., Job]
) -> None:
    job = finish()
    path = server.desk.service.picture(job)
    assert path is not None
    pictures = [b"1" * 100, b"2" * 100_000]
    is_over = threading.Event()

    def replace() -> None:
        new = path.with_name("new.png")
        while not is_over.is_set():
            for picture in pictures:
                new.write_bytes(picture)
                new.replace(path)

    replacing = threading.Thread(target=replace)
    path.write_bytes(pictures[0])
    replacing.start()
    try:
        seen = [get(f"/jobs/{job.id}/growing.png").content for _ in range(100)]
    finally:
        is_over.set()
        replacing.join()
    assert set(map(len, seen)) <= set(map(len, pictures))
    assert all(len(set(picture)) == 1 for picture in seen)


def test_a_student_serves_its_pictures_and_no_others(server: Served, get: Get) -> None:
    folder = server.desk.service.out / "students" / "meanflow-x"
    folder.mkdir(parents=True)
    (folder / "samples.png").write_bytes(b"png")
    (folder / "checkpoint.safetensors").write_bytes(b"secret")
    assert get("/students/meanflow-x/samples.png").content == b"png"
    for path in (
        "meanflow-x/checkpoint.safetensors",
        "..%2Fstudents/samples.png",
        "../jobs.sqlite3",
        "%2e%2e/jobs.sqlite3",
    ):
        assert get(f"/students/{path}").status == 404


def test_gradio_serves_nothing_of_the_disk(server: Served, get: Get) -> None:
    secret = server.desk.service.out / "secret.txt"
    secret.write_text("hush hush")
    for path in (secret, server.desk.service.store.path, Path(__file__), Path("/etc/hostname")):
        answer = get(f"/gradio_api/file={path}")
        assert answer.status in (403, 404), path
        assert b"hush hush" not in answer.content


def test_a_request_cannot_have_a_file_copied_to_where_it_is_served(
    server: Served, get: Get
) -> None:
    secret = server.desk.service.out / "secret.txt"
    secret.write_text("secret")
    data = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    names = {d["api_name"] for d in json.loads(get("/config").content)["dependencies"]}
    assert {"submit", "status", "download"} <= names
    for name in names:
        body = json.dumps({"data": [data] * 12}).encode()
        get(
            f"/gradio_api/run/{name}",
            method="POST",
            body=body,
            **{"Content-Type": "application/json"},
        )
    copied = [path.read_bytes() for path in server.desk.copies.rglob("*") if path.is_file()]
    assert b"secret" not in copied
