"""What can go wrong, by name.

Every error derives from `AnomalyVaeError` and from the builtin (or scikit-learn) error a caller would expect,
and carries its facts as attributes. The wording is "{subject} must {rule}, got {value}. {what to do next}."
"""

from __future__ import annotations

import re
from typing import Any


class AnomalyVaeError(Exception):
    """Base of all errors raised on purpose by this package.

    Args:
        message: One or two sentences for the person who made the call.
        **facts: What the message speaks of, kept as attributes (`error.column`, `error.row`, ...).
    """

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts
        for name, value in facts.items():
            setattr(self, name, value)


class ConfigError(AnomalyVaeError, ValueError):
    """A setting has a value outside its range, or a name that does not exist."""


class SchemaError(AnomalyVaeError, ValueError):
    """A table does not have the columns or the cells that it must have."""


class UnreadableDataError(SchemaError):
    """A file is missing, empty, or not of the format that its name says."""


class UnreadableImageError(UnreadableDataError):
    """An image is damaged, too large, or of a kind that is not read; the text is the rule it broke, without subject."""


class ShapeError(AnomalyVaeError, ValueError):
    """An array has the wrong number of dimensions, rows or columns."""


class CalibrationError(AnomalyVaeError, ValueError):
    """A p-value or threshold was asked for that the calibration rows cannot give."""


class TrainingError(AnomalyVaeError, RuntimeError):
    """Training cannot go on: the loss is not finite, or a checkpoint belongs to another run."""


class ArtifactError(AnomalyVaeError, ValueError):
    """A saved model is missing, damaged, altered, or of a format this version cannot read."""


class OutputExistsError(AnomalyVaeError, FileExistsError):
    """An output is already there and may not be overwritten."""


class LockedError(AnomalyVaeError, RuntimeError):
    """Another process is at work on the same output."""


class DataWarning(UserWarning):
    """The data were usable, but not quite as they came."""


class TrainingWarning(UserWarning):
    """Training finished, but the model is less than it should be."""


def redacted(text: str) -> str:
    """Return text without the passwords and keys in its URLs: for messages, logs and records.

    Example:
        >>> redacted("tracking at https://ada:pa:ss@host/x?token=1&page=2")
        'tracking at https://***@host/x?token=***&page=2'
    """
    text = re.sub(r"(?<=://)[^/\s'\"]*@", "***@", text)
    return re.sub(
        r"(?i)([?&][\w-]*(?:token|key|secret|password|signature|sig|credential)[\w-]*=)[^&\s'\"]+", r"\1***", text
    )


def __getattr__(name: str) -> type:
    # `NotFittedError` also derives from scikit-learn's, whose import costs a second: it is made on first use.
    if name != "NotFittedError":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sklearn.exceptions import NotFittedError as SklearnNotFittedError

    class NotFittedError(AnomalyVaeError, SklearnNotFittedError):
        """An estimator was asked for something before `fit`."""

    globals()[name] = NotFittedError
    return NotFittedError
