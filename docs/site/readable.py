"""Makes docstrings pages: `Example:` is the section that mkdocstrings calls `Examples:`, a formula a block of text."""

from __future__ import annotations

import re
from typing import Any

import griffe

_FORMULA = re.compile(r"^\.\. math:: *(.*(?:\n(?:[ \t]+.*)?)*?)(?=\n\S|\n\n|\Z)", re.MULTILINE)


class Readable(griffe.Extension):
    """Rewrites the docstring of everything that is documented."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = _FORMULA.sub(lambda found: f"```text\n{found[1].strip()}\n```\n", text)
