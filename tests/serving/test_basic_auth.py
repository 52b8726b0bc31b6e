"""A tracking server with MLflow's basic authentication: without a right to a model nobody reads or promotes it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conftest import free_port, make_rows, running

pytest.importorskip("flask_wtf", reason="MLflow's basic authentication needs Flask-WTF")
pytestmark = pytest.mark.slow

ADMIN, BEN = ("admin", "correct-horse-battery"), ("ben", "staple-of-twelve")
SETTINGS = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/auth.db
admin_username = {user}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""
PROMOTE = "import mlflow; mlflow.MlflowClient().set_registered_model_alias('pumps', 'champion', '1')"
GRANT = """
import sys; from mlflow.server import get_app_client
client = get_app_client("basic-auth", sys.argv[1])
client.grant_user_permission("ben", "registered_model", "pumps", "READ")
"""


@dataclass(frozen=True)
class Tracking:
    address: str
    folder: Path

    def run(self, user: tuple[str, str] | None, *words: str) -> subprocess.CompletedProcess[str]:
        """Run Python as a user."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment |= {"MLFLOW_TRACKING_URI": self.address, "MLFLOW_DISABLE_TELEMETRY": "true"}
        if user:
            environment |= {"MLFLOW_TRACKING_USERNAME": user[0], "MLFLOW_TRACKING_PASSWORD": user[1]}
        command = [sys.executable, *words]
        return subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=300)

    def verb(self, user: tuple[str, str] | None, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `anomaly-vae` as a user."""
        return self.run(user, "-m", "anomaly_vae.cli", *words)

    def call(self, user: tuple[str, str] | None, path: str, said: dict[str, Any] | None = None) -> int:
        """Call the server's API as a user, and return the status."""
        request = urllib.request.Request(
            f"{self.address}/api/2.0/mlflow/{path}",
            json.dumps(said).encode() if said else None,
            {"Content-Type": "application/json"},
        )
        if user:
            request.add_header("Authorization", f"Basic {base64.b64encode(':'.join(user).encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    """A tracking server with two users, of whom the administrator has trained a model."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "auth.ini").write_text(SETTINGS.format(folder=folder, user=ADMIN[0], password=ADMIN[1]))
    port = free_port()
    words = [
        *("mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")),
    ]
    variables = {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "for this test"}
    with running(words, port, log=folder / "log", probe="/health", **variables):
        made = Tracking(f"http://127.0.0.1:{port}", folder)
        make_rows(400, seed=0).to_csv(folder / "normal.csv", index=False)
        done = made.verb(ADMIN, "train", "normal.csv", "--name", "pumps", "--set", "steps=50", "--set", "companions=[]")
        assert done.returncode == 0, done.stderr
        assert made.call(ADMIN, "users/create", {"username": BEN[0], "password": BEN[1]}) == 200
        yield made


def refused(done: subprocess.CompletedProcess[str]) -> bool:
    said = done.stdout + done.stderr
    assert not any(secret in said for secret in (ADMIN[1], BEN[1]))
    return done.returncode != 0


def test_nobody_without_a_name_gets_in(guarded: Tracking) -> None:
    assert guarded.call(None, "registered-models/get?name=pumps") == 401
    assert guarded.call(("admin", "guess"), "registered-models/get?name=pumps") == 401
    assert refused(guarded.verb(None, "info", "models:/pumps@champion"))


def test_a_user_without_rights_can_neither_read_nor_promote(guarded: Tracking) -> None:
    done = guarded.verb(BEN, "info", "models:/pumps@champion")
    assert refused(done)
    assert done.stderr.startswith("Error: the model must be one that MLflow can find")
    assert len(done.stderr.strip().splitlines()) == 1
    assert guarded.call(BEN, "registered-models/get?name=pumps") == 403
    assert refused(guarded.run(BEN, "-c", PROMOTE))


def test_a_user_with_the_right_to_read_can_still_not_promote(guarded: Tracking) -> None:
    granted = guarded.run(ADMIN, "-c", GRANT, guarded.address)
    assert granted.returncode == 0, granted.stderr
    assert guarded.call(BEN, "registered-models/get?name=pumps") == 200
    assert refused(guarded.run(BEN, "-c", PROMOTE))
    assert not refused(guarded.run(ADMIN, "-c", PROMOTE))
    done = guarded.verb(ADMIN, "info", "models:/pumps@champion", "--json")
    assert json.loads(done.stdout)["uri"] == "models:/pumps/1"
