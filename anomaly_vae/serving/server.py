"""The process, or processes, behind `anomaly-vae serve`."""

from __future__ import annotations

import asyncio
import functools
import math
import os
import signal
import socket
import tempfile
import warnings
from typing import Any

import h11
import mlflow
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from ..errors import ConfigError
from ..options import ServeConfig
from .journal import LOG_CONFIG
from .service import LINGER_SECONDS, Service, make
from .tally import Tally
from .weights import Served

MOST_CONNECTIONS = 1000
LONGEST_HEAD = 1 << 16
FOLLOW_SECONDS = 2
WORKER_SECONDS = 15
"""How long a worker may be silent before it is taken for hung; one that has just died may take as long to be missed."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 with limits on a client's slowness that uvicorn has not.

    A client has `read_timeout_s` for the head of a request, and as long to take what is ready for it; then the
    connection is cut. (The body's limit is the application's, which can still answer.)
    """

    def __init__(self, *args: Any, patience: float, **more: Any) -> None:
        super().__init__(*args, **more)
        self.patience = patience
        self._heading: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._heading = self.loop.call_later(self.patience, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Go on waiting for a head until it is whole."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            _stop(self._heading)
            self._heading = None
        elif self._heading is None and self.timeout_keep_alive_task is None:
            self._heading = self.loop.call_later(self.patience, self.transport.abort)

    def pause_writing(self) -> None:
        """Begin to wait for the client to take its answer."""
        super().pause_writing()
        _stop(self._taking)
        self._taking = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        """It has."""
        super().resume_writing()
        _stop(self._taking)
        self._taking = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        _stop(self._heading)
        _stop(self._taking)
        super().connection_lost(exc)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def listening(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address.

    Raises:
        ConfigError: The port is taken, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named, or asyncio does not see that it is TCP and leaves small answers waiting for acknowledgements, 40 ms each
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server stopped a moment ago is no obstacle
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"port {port} of {host} must be free, got: {error.strerror or error}. Choose another with --port.",
            port=port,
        ) from error
    bound.set_inheritable(True)
    return bound


def serve(model: Served, uri: str, config: ServeConfig, bound: socket.socket) -> None:
    """Answer requests until told to stop by SIGTERM or SIGINT, and then finish those that are being answered.

    Args:
        model: The model.
        uri: Its URI, with its alias resolved: all workers must serve the same version.
        config: Where to listen, and the bounds.
        bound: The socket; see `listening`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote cells
        if config.workers == 1:
            service = Service(lambda: (model, uri), config, Tally())
            uvicorn.Server(_settings(config, service)).run(sockets=[bound])
            return
        with tempfile.TemporaryDirectory(prefix="anomaly-vae-") as folder:
            application = functools.partial(make, uri, str(mlflow.get_tracking_uri()), config, folder)
            follow = functools.partial(_follow, os.getpid())
            settings = _settings(config, application, factory=True, workers=config.workers, callback_notify=follow)
            Multiprocess(settings, sockets=[bound]).run()


async def _follow(parent: int) -> None:
    """Stop a worker whose parent was killed: nobody would stop it later."""
    if os.getppid() != parent:
        signal.raise_signal(signal.SIGTERM)


def _settings(config: ServeConfig, application: Any, **more: Any) -> uvicorn.Config:
    protocol: Any = functools.partial(PatientProtocol, patience=config.read_timeout_s)
    return uvicorn.Config(
        application,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=LOG_CONFIG,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        h11_max_incomplete_event_size=LONGEST_HEAD,
        timeout_graceful_shutdown=math.ceil(config.read_timeout_s + config.timeout_s + LINGER_SECONDS),
        timeout_notify=FOLLOW_SECONDS,
        timeout_worker_healthcheck=WORKER_SECONDS,
        **more,
    )
