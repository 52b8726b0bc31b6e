"""A table of figures, for the terminal and for Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass
class Sheet:
    """Cells that are already text, under a title, with notes below."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def show(self, console: Console) -> None:
        """Print the table."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for i, name in enumerate(self.columns):
            table.add_column(name, justify="left" if i == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        for note in self.notes:
            console.print(note, style="dim", highlight=False)
        console.print()

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [f"## {self.title}", "", f"| {' | '.join(self.columns)} |"]
        lines.append("|---|" + "---:|" * (len(self.columns) - 1))
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([*lines, "", *self.notes]).rstrip() + "\n"
