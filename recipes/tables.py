"""Tables of results on the terminal, and the names of what stands in their rows and columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import ConfigError


def show_number(value: float | None) -> str:
    """Write a number to three digits, and a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"  # noqa: RUF001


def table_of(title: str, columns: Sequence[str]) -> Any:
    """Begin a table whose first column is text and whose others are numbers."""
    from rich.table import Table

    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    return table


def show(table: Any) -> None:
    """Print a table; into a file or a pipe in its full width."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


def names_of(paths: Sequence[str], option: str) -> list[str]:
    """Name folders by the ends of their paths, or by the paths where the ends do not tell them apart.

    Raises [`ConfigError`] that names the option if a folder is named twice.
    """
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        names = [str(Path(path)) for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError(f"`{option}` names the same twice: {', '.join(paths)}")
    return names
