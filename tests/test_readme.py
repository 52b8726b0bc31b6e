"""What README and docs show must run.

Python and `bash` blocks of a page are run in order, as one program in an empty folder. Blocks marked `sh` are only
shown (they install, serve or wait), but every `anomaly-vae` line in any block must be one that the command takes.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from anomaly_vae.cli import main
from anomaly_vae.detection.detector import SCORE_COLUMNS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Language and text of a page's fenced blocks."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language, text) for language, text in found if not languages or language in languages]


def program(page: Path) -> str:
    """The page as one Python program; shell blocks become calls of bash."""
    parts = ["import subprocess"]
    for language, text in blocks(page, "python", "bash"):
        call = f"subprocess.run(['bash', '-euo', 'pipefail', '-c', {text!r}], check=True)"
        parts.append(text if language == "python" else call)
    return "\n".join(parts)


def commands() -> list[tuple[str, list[str]]]:
    """Page and words of every `anomaly-vae` line, continued lines joined, pipes and redirections cut off."""
    found = []
    for page in PAGES:
        for _, text in blocks(page, "bash", "sh", "console"):
            for line in text.replace("\\\n", " ").splitlines():
                line = line.strip().removeprefix("$ ")
                if line.startswith("anomaly-vae"):
                    words = shlex.split(line, comments=True)
                    end = next(
                        (i for i, word in enumerate(words) if word in (">", "|", "&", "&&", "||", "2>")), len(words)
                    )
                    found.append((name_of(page), words[1:end]))
    return found


def timed(page: Path) -> object:
    """What a newcomer reads first runs before every merge; `make docs` and `make slow` run the other pages."""
    first = page.name in ("README.md", "index.md")
    return pytest.param(page, id=name_of(page), marks=pytest.mark.whole if first else pytest.mark.slow)


@pytest.mark.parametrize("page", [timed(p) for p in PAGES if blocks(p, "python", "bash")])
def test_the_examples_run(page: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    done = subprocess.run(
        [sys.executable, "-c", program(page)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout, "a page that runs must show something"


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_every_command_shown_is_one_that_exists(page: str, words: list[str]) -> None:
    assert words, f"{page}: anomaly-vae without a verb"
    if words[0].startswith("-"):
        assert words[0] in ("--help", "--version", "--traceback")
        return
    verb = main.commands[words[0]]
    if "--help" in words:
        return
    try:
        context = verb.make_context(words[0], list(words[1:]))
    except click.UsageError as error:
        pytest.fail(f"{page}: {' '.join(words)}: {error.message}")
    assert context.params


def test_the_table_of_verbs_lists_them_all() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text.split("## What a score means")[0], re.MULTILINE)) == set(
        main.commands
    )


def test_the_table_of_columns_lists_them_all() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## What a score means")[1]
    assert re.findall(r"^\| `(\w+)` \|", text.split("## Limits")[0], re.MULTILINE) == [
        c for c in SCORE_COLUMNS if c != "threshold"
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_targets_and_functions_exist(page: Path) -> None:
    """`make` targets named in the text are in the Makefile; dotted names of this package can be imported."""
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    assert named <= targets
    rooms = "data|models|training|detection|estimator|evaluation|reporting|serving|options|errors"
    rooms += "|comparison|latent|scorecard"
    for dotted in set(re.findall(rf"`((?:{rooms})(?:\.\w+)+)`", text)):
        parts = dotted.split(".")
        module, rest = importlib.import_module("anomaly_vae"), list(parts)
        while rest:
            try:
                module = importlib.import_module(f"{module.__name__}.{rest[0]}")
            except ModuleNotFoundError:
                break
            rest.pop(0)
        thing = module
        for attribute in rest:
            assert hasattr(thing, attribute), f"{dotted} does not exist"
            thing = getattr(thing, attribute)


def reference() -> list[str]:
    """What the pages of the reference document, by full name."""
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    return [
        name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def test_the_reference_has_every_public_name() -> None:
    import anomaly_vae

    named = {name.rpartition(".")[2] for name in reference()}
    assert {name for name in anomaly_vae.__all__ if name not in named} == {"AnomalyVaeError"}  # with its module
    assert "anomaly_vae.errors" in reference()


@pytest.mark.parametrize("name", reference())
def test_what_the_reference_documents_is_there(name: str) -> None:
    parent, _, last = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        assert getattr(importlib.import_module(parent), last).__doc__


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "docs" / "site" / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
