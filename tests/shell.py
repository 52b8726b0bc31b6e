"""Commands typed within this process."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from anomaly_vae.cli import main


@dataclass(frozen=True)
class Done:
    stdout: str
    stderr: str


def run(folder: Path, *words: object, code: int = 0) -> Done:
    """Run a command in a folder, within this process: a process each would cost seconds of imports."""
    import mlflow

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    (folder / "mlruns").mkdir(exist_ok=True)
    try:
        with contextlib.chdir(folder):
            result = CliRunner().invoke(main, [str(word) for word in words])
    finally:
        mlflow.set_tracking_uri(before)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr
    return Done(result.stdout, result.stderr)
