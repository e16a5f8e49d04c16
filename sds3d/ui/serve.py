"""The server: the page behind its guard, and the workers beside it, until it is told to end."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sds3d.errors import OutputError, Sds3dError
from sds3d.jobs.limits import LimitsConfig
from sds3d.jobs.service import JobService
from sds3d.jobs.supervisor import WORKER_COMMAND, Supervisor
from sds3d.ui.config import AppConfig
from sds3d.ui.desk import Desk
from sds3d.ui.processes import COMMAND, Processes
from sds3d.ui.shipped import shipped_teachers
from sds3d.ui.trainings import Trainings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

STARTUP_SECONDS = 30.0
STUDENTS = "students"


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server that answers: its address, the guarded application, and the desk behind it."""

    url: str
    app: ASGIApp
    desk: Desk


@contextlib.contextmanager
def serving(
    config: AppConfig,
    *,
    limits: LimitsConfig | None = None,
    worker_command: Sequence[str] = WORKER_COMMAND,
    command: Sequence[str] = COMMAND,
) -> Iterator[Served]:
    """Serve until the block ends; then the workers keep checkpoints and end too.

    `worker_command` and `command` take the place of the program's own processes. Raises
    StoreInUse where another server has the folder, and OutputError where the port is taken.
    """
    limits = limits or LimitsConfig(teachers=None if config.is_local else shipped_teachers())
    with contextlib.ExitStack() as stack:
        # First, because it is what most likely fails.
        listening = stack.enter_context(_listen(config))
        service = stack.enter_context(JobService(config.out, limits=limits))
        supervisor = Supervisor(service.store, service.out, command=worker_command)
        supervisor.start(in_background=True)
        stack.callback(supervisor.close)
        copies = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sds3d-app-")))
        processes = Processes(config.out / "app.log", command)
        stack.callback(processes.close)
        trainings = Trainings(processes, config.out / STUDENTS)
        stack.callback(trainings.close)
        desk = Desk(service, processes=processes, copies=copies, trouble=lambda: supervisor.trouble)
        app = make_asgi(config, desk, trainings)
        stack.enter_context(_answering(app, listening))
        host, port = listening.getsockname()[:2]
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        address = f"[{shown}]" if ":" in shown else shown
        yield Served(url=f"http://{address}:{port}/", app=app, desk=desk)


def make_asgi(config: AppConfig, desk: Desk, trainings: Trainings) -> ASGIApp:
    """The page, its files and its guard as one ASGI application."""
    # Read by gradio when components are made.
    os.environ["GRADIO_TEMP_DIR"] = str(desk.copies)
    import gradio as gr
    from fastapi import FastAPI

    from sds3d.ui import examples
    from sds3d.ui.build import build_app
    from sds3d.ui.distillation_look import CSS as DISTILLATION_CSS
    from sds3d.ui.files import routes
    from sds3d.ui.security import Guard
    from sds3d.ui.theme import CSS, THEME

    demo = build_app(desk, trainings, any_teacher=desk.service.limits.teachers is None)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.router.routes.extend(routes(desk.service, trainings.out))
    app.router.routes.extend(examples.routes(desk.examples))
    mounted = gr.mount_gradio_app(
        app,
        demo,
        "/",
        server_name=config.host,
        server_port=config.port,
        footer_links=["api", "settings"],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=1,
        theme=THEME,
        css=CSS + DISTILLATION_CSS,
    )
    # Only then does gradio check which files a request may speak of.
    demo.has_launched = True
    return Guard(mounted, host=config.host, auth=config.auth, trusted=config.trusted_host)


def run(config: AppConfig, announce: Callable[[str], None], must_end: Callable[[], bool]) -> None:
    """Serve until `must_end`; `announce` is told the address."""
    with serving(config) as served:
        announce(served.url)
        while not must_end():
            time.sleep(0.2)


@contextlib.contextmanager
def _listen(config: AppConfig) -> Iterator[socket.socket]:
    try:
        found = socket.getaddrinfo(
            config.host.strip("[]"), config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OutputError(
            f"--host is {config.host!r}, which is no address of this machine ({error.strerror})"
        ) from error
    with listening:
        try:
            if os.name == "posix":
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(128)
        except OSError as error:
            raise OutputError(
                f"cannot listen on {config.host} port {config.port} ({error.strerror}): "
                "choose another with --port, or 0 for a free one"
            ) from error
        yield listening


@contextlib.contextmanager
def _answering(app: ASGIApp, listening: socket.socket) -> Iterator[None]:
    """uvicorn in a thread of its own: signals stay with who called."""
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            ws="none",
        )
    )
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listening]}, name="server", daemon=True
    )
    thread.start()
    deadline = time.monotonic() + STARTUP_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise Sds3dError("the server did not come up; the lines above say why")
        time.sleep(0.02)
    try:
        yield
    finally:
        # Pages that are still open listen for events; to cut them off is no error.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server.should_exit = True
        thread.join(10)
