"""The one look of the commands' tables, and what they say beside them."""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

LONGEST = 600  # letters of a line about what is wrong
WIDE = 160  # columns of a table that no terminal shows
MOMENT = 1.0  # seconds: bad input is refused sooner, in a line of its own


def new_table(heading: str, *others: str) -> Table:
    """An empty table: names to the left, numbers to the right."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column(heading, overflow="fold")
    for other in others:
        table.add_column(other, justify="right")
    return table


def new_console(columns: int = 80, *, soft_wrap: bool = False, stderr: bool = False) -> Console:
    """Of at least so many columns: a narrower terminal folds a line, not each of its words."""
    return Console(width=max(Console().width, columns), highlight=False, soft_wrap=soft_wrap, stderr=stderr)


def print_table(table: Table, console: Console) -> None:
    """A table, which a terminal may make narrow: a file or a pipe has no edge at which a name would have to break."""
    (console if is_terminal("stdout") else new_console(WIDE)).print(table)


def say(text: str) -> None:
    """One line on stderr about what is wrong; of a very long one the beginning and the end.

    Letters that a screen would obey, such as those of an escape sequence in a file's name, are spelt out.
    """
    line = " ".join(text.split())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST - 205]} ... {line[-200:]}"
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
    typer.echo(f"mla-edu: {line}", err=True)


def a_path(text: str) -> Path:
    """What a path's option was given; Python takes no letters, such as of an unset variable, for the current folder."""
    if not str(text):
        raise ValueError("expected a path")
    return Path(text)


@contextmanager
def naming_options(options: Mapping[str, str]) -> Iterator[None]:
    """An error about arguments names the options that they came from.

    Args:
        options: what a user wrote, by what an error begins with: ``{"num_heads": "--heads"}``.
    """
    begun = "|".join(map(re.escape, options))
    try:
        yield
    except ValueError as error:
        told = str(error)
        text = re.sub(rf"(^|; )(?:[A-Z]\w+: )?({begun})(?= is |; )", lambda found: found[1] + options[found[2]], told)
        if text == told:
            raise
        raise ValueError(text) from None


@contextmanager
def of_option(option: str) -> Iterator[None]:
    """An error about a file names the option that named the file."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{option}: {error}") from None


def is_terminal(name: str) -> bool:
    """Whether ``"stdout"`` or ``"stderr"`` is one; a notebook's commands believe that they have one."""
    return bool(getattr(sys, name).isatty()) and "JPY_PARENT_PID" not in os.environ


@contextmanager
def telling(text: str) -> Iterator[None]:
    """Say in a line on stderr what is done, if it takes longer than a moment and nobody sees a live line."""
    timer = threading.Timer(MOMENT, lambda: typer.echo(f"{text} ...", err=True))
    timer.daemon = True
    if not is_terminal("stderr"):
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def working(text: str, total: int | None = None) -> Iterator[Callable[[int], object]]:
    """Say on stderr what takes a while: on a terminal a line that lives as long as the work, elsewhere one line.

    Args:
        text: what is done.
        total: of how many parts it is made; None where that is not known.

    Yields:
        What is to be told how many are done.
    """
    if not is_terminal("stderr"):
        with telling(text):
            yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = [SpinnerColumn(), TextColumn("{task.description}")]
    columns += [] if total is None else [BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.update(task, completed=done)
