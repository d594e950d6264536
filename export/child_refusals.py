"""For the exporting child: refusals, and the user's line and module that an error of torch came through."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


class Refused(Exception):
    """The user's input was wrong.

    Attributes:
        tries: one suggestion per ``Try:`` line.
    """

    def __init__(self, message: str, *tries: str) -> None:
        super().__init__(message)
        self.tries = tries


def first_line(error: BaseException) -> str:
    """What an error says first, without the terminal codes that torch puts into its messages."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return lines[0][:300] if lines else ""


def user_line(error: BaseException, folder: Path) -> str | None:
    """``file:line`` of the user's code that an error came through last, if any."""
    lines = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename is not None:
        lines.append((error.filename, error.lineno or 0))
    return _last_of_theirs(lines, folder)


def traced_line(stack: str, folder: Path) -> str | None:
    """``file:line`` of the user's code that comes last in a stack trace as text."""
    return _last_of_theirs([(name, int(number)) for name, number in _FRAME.findall(stack)], folder)


def _last_of_theirs(lines: list[tuple[str, int]], folder: Path) -> str | None:
    root = folder.resolve()
    for name, number in reversed(lines):
        if name.startswith("<"):  # no file, as in <frozen importlib._bootstrap>
            continue
        file = Path(name).resolve()
        if root in file.parents and "site-packages" not in file.parts:
            return f"{file.relative_to(root)}:{number}"
    return None


def running_module(error: BaseException, model: nn.Module) -> str | None:
    """The innermost module of the model whose ``forward`` an error came out of; the model itself is ``""``."""
    names = {id(module): name for name, module in model.named_modules()}
    found = [names[id(owner)] for owner in map(_owner, _frames(error.__traceback__)) if id(owner) in names]
    return found[-1] if found else None


def _frames(trace: TracebackType | None) -> Iterator[FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _owner(frame: FrameType) -> object:
    return frame.f_locals.get("self")


def place(line: str | None, module: str | None) -> str:
    """Where in the user's model: the line of their code and the module, as far as known, in quotes."""
    known = [f'"{line}"'] if line else []
    known += [f'module "{module}"'] if module else []
    return f" in {', '.join(known)}" if known else ""
