"""What people see: progress on stderr (only on a terminal), errors in one line, and quiet libraries."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from splitboard.contract.errors import EXIT_BUG, SplitboardError

_SHOWN_CHARACTERS = 4000
"""Of the libraries' chatter, when the work failed."""


@contextlib.contextmanager
def steps(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Shows a progress bar per step and keeps the converters' own chatter off the terminal.

    The libraries below write to the process's standard error from C++; it goes to a file meanwhile, which is shown only
    if the work fails with an unexpected error.

    Args:
        title: of the whole work.

    Yields:
        A function to call with (step, done, total).
    """
    with tempfile.TemporaryFile("w+") as log, os.fdopen(os.dup(2), "w") as terminal:
        console = Console(file=terminal)
        bar = Progress(
            TextColumn(f"[bold]{title}[/bold] {{task.description}}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        known: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            name = step.split()[0]
            if name not in known:
                known[name] = bar.add_task(name, total=total)
            bar.update(known[name], description=step, completed=done, total=total)

        sys.stderr.flush()
        os.dup2(log.fileno(), 2)
        try:
            with bar:
                yield show
        finally:
            sys.stderr.flush()
            os.dup2(terminal.fileno(), 2)
            if _is_unexpected(sys.exc_info()[1]):
                log.seek(0)
                sys.stderr.write(log.read()[-_SHOWN_CHARACTERS:])


def _is_unexpected(error: BaseException | None) -> bool:
    if isinstance(error, SplitboardError):
        return error.exit_code == EXIT_BUG
    return isinstance(error, Exception)
