"""The bar that shows how far training is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def training_progress(epochs: int, shown: bool | str) -> Iterator[Callable[[Any], None]]:
    """Yield what to call with each `training.Epoch` as it ends; with `shown` it moves a bar on standard error.

    Args:
        epochs: At most.
        shown: Whether to show a bar, or what it is called.
    """
    if not shown:
        yield lambda epoch: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    name = shown if isinstance(shown, str) else "training"
    columns = (TextColumn(name), BarColumn(), TextColumn("{task.fields[facts]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=epochs, facts="")

        def advance(epoch: Any) -> None:
            facts = (
                f"ELBO {epoch.validation_elbo:.2f}  KL {epoch.kl:.2f}  "
                f"reconstruction {epoch.reconstruction:.2f}  active {epoch.active_units}"
            )
            bar.update(task, advance=1, facts=facts)

        yield advance
        bar.update(task, completed=epochs)
