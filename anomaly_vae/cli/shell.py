"""What all verbs of the command share: errors as one line and an exit code, options read off settings, printing."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import AnomalyVaeError, SchemaError, redacted
from ..reporting import terminal

if TYPE_CHECKING:
    import pandas as pd

    from ..data.image_source import ImageError
    from ..serving.tracking import Registered

DONE, UNEXPECTED, CALLERS_MISTAKE, TOO_MANY_FLAGGED, INTERRUPTED = 0, 1, 2, 3, 130


class Verbs(click.Group):
    """Turns what goes wrong into one line and an exit code."""

    stack_wanted = False

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command line and leave with its exit code, also when called from Python."""
        kwargs["standalone_mode"] = False
        with warnings.catch_warnings():
            terminal.tidy_warnings()
            sys.exit(self._run(*args, **kwargs))

    def _run(self, *args: Any, **kwargs: Any) -> int:
        try:
            code = super().main(*args, **kwargs)
            return code if isinstance(code, int) else DONE
        except click.ClickException as error:
            error.show()
            return CALLERS_MISTAKE
        except (click.Abort, KeyboardInterrupt):
            click.echo("Interrupted.", err=True)
            return INTERRUPTED
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the reader is gone; nothing more can be said
            return UNEXPECTED
        except Exception as error:
            if self.stack_wanted:
                click.echo(redacted(traceback.format_exc()), err=True, nl=False)
            if isinstance(error, AnomalyVaeError):
                click.echo(redacted(f"Error: {error}"), err=True)
                return CALLERS_MISTAKE
            hint = "" if self.stack_wanted else " (`anomaly-vae --traceback ...` or ANOMALY_VAE_DEBUG=1 shows where)"
            click.echo(redacted(f"Unexpected {type(error).__name__}: {one_line(error)}{hint}"), err=True)
            return UNEXPECTED


class OrNone(click.ParamType):
    """A number, or the word none."""

    def __init__(self, kind: click.ParamType) -> None:
        self.kind, self.name = kind, f"{kind.name}|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or None."""
        return None if value is None or str(value).lower() == "none" else self.kind.convert(value, param, ctx)


def options_of(kind: type[Any]) -> Callable[[Any], Any]:
    """One option for each setting of a verb, with its default and its text."""
    types: dict[str, Any] = {"str": click.STRING, "int": click.INT, "float": click.FLOAT}

    def decorate(command: Any) -> Any:
        for setting in reversed(dataclasses.fields(kind)):
            option, text, default = setting.name.replace("_", "-"), setting.metadata["help"], setting.default
            name, _, optional = str(setting.type).partition(" ")
            facts = {"default": default, "show_default": default is not None, "help": f"{text[0].upper()}{text[1:]}."}
            if name == "bool":
                command = click.option(f"--{option}/--no-{option}", **facts)(command)
            else:
                numeric = bool(optional) and name != "str" and default is not None
                command = click.option(f"--{option}", type=OrNone(types[name]) if numeric else types[name], **facts)(
                    command
                )
        return command

    return decorate


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")


def without(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the table without these columns."""
    for name in columns:
        column_of(frame, name)
    return frame.drop(columns=list(columns))


def column_of(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return a column of the table.

    Raises:
        SchemaError: It has none of that name.
    """
    if name not in frame.columns:
        near = difflib.get_close_matches(name, list(frame.columns), n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(map(repr, frame.columns[:8]))}."
        raise SchemaError(f"a named column must be in the table, got {name!r}. {hint}", column=name)
    return frame[name]


def tell_unreadable(errors: Sequence[ImageError]) -> None:
    """Say which images are left out, and why."""
    for error in errors[: terminal.MAX_WARNINGS]:
        click.echo(f"Warning: left out: {error}", err=True)
    if len(errors) > terminal.MAX_WARNINGS:
        click.echo(f"Warning: {len(errors) - terminal.MAX_WARNINGS} more images are left out.", err=True)


def print_json(value: Any) -> None:
    """Print a value for a program to read."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def registered_facts(made: Registered) -> dict[str, Any]:
    """Return what a program wants to know of a version just registered."""
    ranking = made.ranking.to_dict() if made.ranking else None
    facts = {"uri": made.uri, "run_id": made.run_id, "champion": made.champion, "ranking": ranking}
    return facts | ({"promise": made.promise.to_dict()} if made.promise else {})


def short(path: Path) -> Path:
    """Return a path as seen from the working folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def one_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "without a message."
