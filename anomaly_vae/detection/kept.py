"""What scoring by one model again need not do again."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

from ..models.fused import Scorer
from ..models.tried import WORTH_TRYING


class Kept:
    """A model's scorers, one for each thread since they have buffers, and what was found out about them.

    It belongs to one model, whose weights do not change. A copy or a pickle of it is empty.
    """

    def __init__(self) -> None:
        self._here = threading.local()
        self._asked: Counter[Hashable] = Counter()
        self._found: dict[Hashable, bool] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()

    def scorer(self, kind: str, make: Callable[[], Scorer]) -> Scorer:
        """Return the calling thread's scorer of a kind, made if there is none."""
        scorers: dict[str, Scorer] = vars(self._here).setdefault("scorers", {})
        if kind not in scorers:
            scorers[kind] = make()
        return scorers[kind]

    def known(self, what: Hashable, find: Callable[[], bool]) -> bool:
        """Return whether something is known to be so; `find` is asked once, and only if that begins to be worth it."""
        if what not in self._found:
            self._asked[what] += 1
            if self._asked[what] < WORTH_TRYING:
                return False
            self._found[what] = find()
        return self._found[what]
