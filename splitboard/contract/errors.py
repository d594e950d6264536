"""Errors that end a command, and the exit code of each.

Exit codes: 0 pass, 1 a gate failed, 2 inconclusive, 3 the user's input was wrong, 70 our own bug.
"""

from __future__ import annotations

from typing import Sequence, Tuple

EXIT_PASS = 0
EXIT_GATE_FAILED = 1
EXIT_INCONCLUSIVE = 2
EXIT_USER_ERROR = 3
EXIT_BUG = 70


class SplitboardError(Exception):
    """One line that names the offending value in quotes, and what to try.

    Attributes:
        message: one line.
        tries: one suggestion per ``Try:`` line.
        exit_code: what the process returns.
    """

    exit_code = EXIT_BUG

    def __init__(self, message: str, tries: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.tries: Tuple[str, ...] = tuple(tries)

    def __str__(self) -> str:
        return "\n".join([f"error: {self.message}", *(f"Try: {line}" for line in self.tries)])


class UserError(SplitboardError):
    """The user's input was wrong."""

    exit_code = EXIT_USER_ERROR


class GateFailed(SplitboardError):
    """A check that the user asked for did not hold."""

    exit_code = EXIT_GATE_FAILED


class Inconclusive(SplitboardError):
    """Not enough data, a throttled board, or no sensor where one is required."""

    exit_code = EXIT_INCONCLUSIVE
