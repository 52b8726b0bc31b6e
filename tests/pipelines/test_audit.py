"""The audit is green only if every package was looked up."""

from __future__ import annotations

import importlib
import stat
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PIPELINES)
    return importlib.import_module("audit")


GOOD: dict[str, Any] = {"name": "click", "version": "8.5.1", "vulns": []}
BAD = {"name": "old", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0)"}


@pytest.mark.parametrize(
    ("found", "status", "said"),
    [
        ([GOOD], 0, "1 of 1 packages checked."),
        ([GOOD, BAD], 1, "old 1.0: PYSEC-1, fixed in 1.1"),
        ([BAD, SKIPPED], 1, "1 of 2 packages were NOT checked"),
        ([GOOD, SKIPPED], 2, "1 of 2 packages were NOT checked"),
        ([], 2, "NOTHING was checked"),
        (None, 2, "NOTHING was checked"),
    ],
)
def test_verdicts(found: Any, status: int, said: str, audit: ModuleType) -> None:
    got, lines = audit.verdict(None if found is None else {"dependencies": found})
    assert got == status
    assert said in "\n".join(lines)


@pytest.mark.parametrize("output", ["", "echo 'Connection refused' >&2; exit 1", "echo '{\"dependencies\": []}'"])
def test_a_service_that_cannot_be_reached_is_said_to_be(output: str, audit: ModuleType, tmp_path: Path) -> None:
    tool = tmp_path / "pip-audit"
    tool.write_text(f"#!/bin/sh\n{output}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "pins.txt").write_text("click==8.5.1\n")
    done = CliRunner().invoke(audit.main, [str(tmp_path / "pins.txt"), "--pip-audit", str(tool)])
    assert done.exit_code == 2
    assert "NOTHING was checked" in done.output
