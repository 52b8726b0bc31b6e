"""`mlflow models serve` for a registered detector, with what it needs around it."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

import mlflow

from ..errors import ConfigError


def check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on.

    Raises:
        ConfigError: The port is taken, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server stopped a moment ago is no obstacle
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} of {host} must be free, got: {error.strerror or error}. Choose another with --port.",
                port=port,
            ) from error


def serve(uri: str, *, host: str = "127.0.0.1", port: int = 5000, workers: int = 1) -> NoReturn:
    """Become the HTTP server of a model.

    The process is replaced, so signals reach MLflow itself and nothing of this one stays in memory.

    Args:
        uri: The model, with its alias resolved: all workers must serve the same version.
        host: Address to listen on; the server has no authentication, so the default is this machine alone.
        port: Port to listen on.
        workers: Processes.

    Raises:
        ConfigError: The port is taken.
    """
    check_port(host, port)
    address = ["--host", host, "--port", str(port), "--workers", str(workers)]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, *address, "--env-manager", "local"]
    # MLflow starts uvicorn by its bare name; it must be the one beside this interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    os.execve(
        sys.executable, command, {**os.environ, "MLFLOW_TRACKING_URI": str(mlflow.get_tracking_uri()), "PATH": path}
    )
