"""Known vulnerabilities of the pinned dependencies, by pip-audit, with a verdict that cannot be green for nothing.

pip-audit ends with "No known vulnerabilities found" and status 0 where the index that pip is pointed at has no
advisories at all; it then skips every package. Here a package that was not looked up is not taken for a safe one.

Status 0: all were looked up, none has an advisory. 1: some have. 2: some or all could not be looked up.

Example:
    python pipelines/audit.py constraints.txt --pip-audit .venv-audit/bin/pip-audit
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

CLEAN, VULNERABLE, UNKNOWN = 0, 1, 2
PATIENCE = 900


def verdict(found: dict[str, Any] | None) -> tuple[int, list[str]]:
    """Return the status, and what to say.

    Args:
        found: pip-audit's JSON; None: it gave none, since it could not reach its service.
    """
    dependencies = (found or {}).get("dependencies", [])
    if not dependencies:
        return UNKNOWN, ["The advisory service could not be reached: NOTHING was checked. Try again with access to it."]
    skipped = [d["name"] for d in dependencies if "skip_reason" in d]
    lines = [
        f"{d['name']} {d['version']}: {v['id']}, fixed in {', '.join(v['fix_versions']) or 'no version yet'}"
        for d in dependencies
        for v in d.get("vulns", ())
    ]
    checked = len(dependencies) - len(skipped)
    if skipped:
        names = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        lines.append(
            f"{len(skipped)} of {len(dependencies)} packages were NOT checked, the advisory service does not know them "
            f"from here ({names}). Try again with access to PyPI's own service."
        )
    status = VULNERABLE if any(d.get("vulns") for d in dependencies) else UNKNOWN if skipped else CLEAN
    return status, [*lines, f"{checked} of {len(dependencies)} packages checked."]


@click.command()
@click.argument("requirements", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--pip-audit", "tool", default="pip-audit", show_default=True, help="The command.")
def main(requirements: Path, tool: str) -> None:
    """Look the pinned dependencies in REQUIREMENTS up."""
    command = [tool, "-r", str(requirements), "--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        found = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError):
        found = None
    status, lines = verdict(found)
    for line in lines:
        click.echo(line, err=status != CLEAN)
    sys.exit(status)


if __name__ == "__main__":
    main()
