"""The options of `sds3d app`, checked before anything is served."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sds3d.errors import ConfigError
from sds3d.require import require_number


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """Serve the interface in a browser. The line printed is its address; Ctrl-C ends it."""

    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach needs --auth."""
    port: int = 7860
    """Port to listen on; 0 takes a free one."""
    auth: Annotated[str | None, tyro.conf.arg(metavar="USER:PASSWORD")] = None
    """Ask every visitor for this name and password."""
    trusted_host: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="HOST")
    ] = ()
    """A name under which others reach this server, as behind a proxy; needs --auth. May be given
    several times."""
    out: Path = Path("outputs")
    """Folder of the runs, the students and the queue."""

    def __post_init__(self) -> None:
        require_number("--port", self.port, 0, 65535)
        if not self.host.strip():
            raise ConfigError("--host is empty: give an address such as 127.0.0.1")
        for name in self.trusted_host:
            if not re.fullmatch(r"[\w-]+(\.[\w-]+)*|\[[0-9a-fA-F:.]+\]", name):
                raise ConfigError(
                    f"--trusted-host is {name[:80]!r}: give a name such as mesh.example.org, "
                    "without https:// and without a port"
                )
        if self.auth is not None:
            user, colon, password = self.auth.partition(":")
            if not (user and colon and password):
                # Not repeated here: it may be most of a password.
                raise ConfigError("--auth is not of the form USER:PASSWORD")
        elif any(not is_loopback(name) for name in self.trusted_host):
            raise ConfigError(
                "--trusted-host says that others reach this server: protect it with "
                "--auth USER:PASSWORD"
            )
        elif not is_loopback(self.host):
            raise ConfigError(
                f"--host is {self.host!r}, which other machines can reach: protect it with "
                "--auth USER:PASSWORD, or leave it at 127.0.0.1"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server, as far as it is told."""
        return is_loopback(self.host) and all(map(is_loopback, self.trusted_host))
