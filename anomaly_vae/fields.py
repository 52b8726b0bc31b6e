"""What settings are made of: fields with a help text, rules for their values, reading and writing.

Nothing here imports more than the standard library, so that `--help` stays instant.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Self

from .errors import ConfigError

Rule = tuple[Callable[[float], bool], str]
NOT_NEGATIVE: Rule = (lambda v: v >= 0, "be a number of at least 0")
POSITIVE: Rule = (lambda v: v > 0, "be a number above 0")
SHARE: Rule = (lambda v: 0 <= v < 1, "be a share from 0 to below 1")


def option(default: Any, text: str) -> Any:
    """Return a dataclass field with a default and a help text."""
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def check(condition: bool, name: str, rule: str, value: object) -> None:
    """Raise a ConfigError that says what an option must be, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} must {rule}, got {value!r}. Change {name} and try again.", option=name, value=value)


def is_integer(value: object, low: int = 1) -> bool:
    """Whether a value is a whole number of at least `low`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Options:
    """What all settings share: reading from mappings, TOML and `key=value` words; writing to a dict."""

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Build from a mapping of field names to values.

        Raises:
            ConfigError: A name is unknown (the nearest known one is suggested) or a value is out of range.
        """
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for key in mapping:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known options: {', '.join(names)}."
                raise ConfigError(f"an option must be one of this verb's, got {key!r}. {hint}", option=key)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in mapping.items()})

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Build from a TOML file whose keys are the fields of this class.

        Raises:
            ConfigError: The file is absent, is not TOML, or holds an unknown key or a bad value.
        """
        try:
            mapping = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"the configuration must be a readable file, got {str(path)!r}. {error.strerror}."
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"the configuration must be TOML, got {str(path)!r}. {error}.") from error
        return cls.from_mapping(mapping)

    def updated(self, words: Iterable[str]) -> Self:
        """Return a copy with `key=value` words applied; values are TOML, bare words are strings.

        Example:
            >>> from anomaly_vae import TrainConfig
            >>> TrainConfig().updated(["latent=4", "score_kind=elbo"]).latent
            4
        """
        changes: dict[str, Any] = {}
        for word in words:
            key, separator, text = word.partition("=")
            if not separator:
                raise ConfigError(f"a setting must look like key=value, got {word!r}. Write for example latent=8.")
            try:
                changes[key.strip()] = tomllib.loads(f"value = {text}")["value"]
            except tomllib.TOMLDecodeError:
                changes[key.strip()] = text.strip()
        return type(self).from_mapping({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values; `from_mapping` is the inverse."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
