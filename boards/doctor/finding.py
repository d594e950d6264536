"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from boards.detect import Detected

Level = Literal["ok", "warning", "in the way"]
"""``warning``: what spoils a measurement or costs something; ``in the way``: what ends the work."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at, e.g. ``numpy``.
        level: how bad it is.
        what: was found, one line.
        mend: commands that mend it, to be typed on the board unless they begin with ``splitboard``.
    """

    check: str
    level: Level
    what: str
    mend: tuple[str, ...] = ()


@dataclass(frozen=True)
class Findings:
    """All that was looked at on one board.

    Attributes:
        station: its name.
        kind: that the board was judged as.
        detected: what the board itself says.
        findings: in the order of looking.
    """

    station: str
    kind: str
    detected: Detected
    findings: tuple[Finding, ...]

    @property
    def in_the_way(self) -> tuple[Finding, ...]:
        """What ends the work."""
        return tuple(one for one in self.findings if one.level == "in the way")


def ok(check: str, what: str) -> Finding:
    """Nothing to mend."""
    return Finding(check, "ok", what)


def warning(check: str, what: str, *mend: str) -> Finding:
    """Something that spoils a measurement or costs something."""
    return Finding(check, "warning", what, mend)


def in_the_way(check: str, what: str, *mend: str) -> Finding:
    """Something that ends the work."""
    return Finding(check, "in the way", what, mend)
