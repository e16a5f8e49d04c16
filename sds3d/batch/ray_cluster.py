"""The Ray cluster of a batch: joined by its address, and its machines divided among the workers."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sds3d.errors import BadInput, ConfigError

CONNECT_SECONDS = 5.0
LOCAL_STORE_BYTES = 100 * 2**20
"""Memory for the objects of a cluster of our own: what is passed is small, results are files."""


def join_cluster(address: str) -> Any:
    """Connect to the cluster at `address`; returns the module `ray`. Leave it by `ray.shutdown()`.

    Raises BadInput where Ray is not installed or nothing answers there.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise BadInput("--ray needs the package ray: pip install 'sds3d[ray]'") from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        quiet |= {"include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
        quiet["_node_ip_address"] = "127.0.0.1"
    else:
        _check_address(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, **quiet)
    except Exception as error:
        raise _cannot_join(address, error) from error
    finally:
        # Ray puts a handler of its own there, which would end the batch without its pages.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
    return ray


def _cannot_join(address: str, error: Exception) -> BadInput:
    reason = " ".join(str(error).split())[:200]
    return BadInput(
        f"--ray {address[:80]}: cannot join the cluster ({reason}): is it running, and is this the "
        "address of its head? ray start --head begins one, --ray local needs none"
    )


def _check_address(address: str) -> None:
    """Raise at once where there is no cluster: Ray itself tries for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    known = host and port.isdecimal() and "/" not in host and 0 < int(port) < 65536
    if address != "auto" and not known:
        raise ConfigError(
            f"--ray is {address[:80]!r}: give HOST:PORT of the cluster's head, auto for the one "
            "that this machine belongs to, or local"
        )
    # Not public, but it alone says what Ray takes for auto and for localhost.
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address(address)
        if found is None:
            raise ConnectionError("this machine belongs to none")
        host, _, port = found.rpartition(":")
        _greet(host.strip("[]"), int(port))
    except (OSError, ValueError) as error:
        raise _cannot_join(address, error) from error


def _greet(host: str, port: int) -> None:
    """Begin a connection as gRPC does, and wait for the settings that its servers answer with."""
    with socket.create_connection((host, port), CONNECT_SECONDS) as connection:
        if "RAY_USE_TLS" in os.environ:
            return
        connection.settimeout(CONNECT_SECONDS)
        connection.sendall(_HTTP2_PREFACE + _HTTP2_EMPTY_SETTINGS)
        header = connection.recv(9, socket.MSG_WAITALL)
    if header[3:4] != _HTTP2_EMPTY_SETTINGS[3:4]:
        raise ConnectionError(f"what answers at {host}:{port} is no Ray cluster")


# RFC 9113, sections 3.4 and 6.5: a frame is its length (3 bytes), its type (4: SETTINGS), ...
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HTTP2_EMPTY_SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one worker is given, and how many such workers have room on the whole cluster."""

    cpus: float
    gpus: float
    room: int


def divide(
    nodes: Sequence[tuple[float, float]],
    workers: int,
    *,
    cpus: float | None = None,
    gpus: float | None = None,
    use_gpus: bool = True,
) -> Share:
    """Divide the (processors, GPUs) of each node among `workers`.

    `cpus` and `gpus` are the user's own choice. Otherwise a worker gets the largest part of a GPU
    (a whole one, a half, a third, ...) with which all have room, none without `use_gpus`, and then
    the largest number of processors with which they still have.
    """
    whole_gpus = sum(math.floor(node[1]) for node in nodes)
    if gpus is None:
        gpus = 0.0
        if use_gpus and whole_gpus:
            gpus = _rounded_down(1 / math.ceil(workers / whole_gpus))
    if cpus is None:
        wanted = min(workers, _room(nodes, 0.0, gpus, workers))
        most = math.floor(max((node[0] for node in nodes), default=0.0))
        choices = [float(k) for k in range(most, 0, -1)]
        choices += [_rounded_down(1 / m) for m in range(2, workers + 1)]
        fitting = (k for k in choices if _room(nodes, k, gpus, workers) >= wanted)
        cpus = next(fitting, 0.0)
    return Share(cpus=cpus, gpus=gpus, room=_room(nodes, cpus, gpus, workers))


def _room(nodes: Sequence[tuple[float, float]], cpus: float, gpus: float, most: int) -> int:
    """How many workers with these shares fit, at most `most` on a node."""
    return sum(
        min(
            most,
            math.floor(node_cpus / cpus) if cpus else most,
            _room_on_gpus(node_gpus, gpus) if gpus else most,
        )
        for node_cpus, node_gpus in nodes
    )


def _room_on_gpus(there: float, share: float) -> int:
    """A part of a GPU is a part of one: two halves of different GPUs make none."""
    if share < 1:
        return math.floor(there) * math.floor(1 / share)
    return math.floor(there / share)


def _rounded_down(share: float) -> float:
    """To the ten-thousandths in which Ray counts."""
    return math.floor(share * 10_000) / 10_000
