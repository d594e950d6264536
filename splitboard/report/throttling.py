"""Whether a board slowed itself down during a run."""

from __future__ import annotations

import re

from splitboard.contract.record import RunRecord

_HEX = re.compile(r"0x([0-9a-fA-F]+)")

_NOW = 0x0000F
"""Raspberry Pi: under-voltage, capped, throttled or at the soft temperature limit at this moment."""

_SINCE_BOOT = 0xF0000
"""The same four, remembered since boot."""


def throttled_reason(record: RunRecord) -> str | None:
    """Why the record's times are inconclusive, ``None`` where nothing speaks against them.

    A Raspberry Pi's flags are bits: those of this moment count always, those since boot only when the run set them, as
    they may be weeks old. Flags of any other form count when they changed during the run.
    """
    before, after = record.before.throttled, record.after.throttled
    if before is None or after is None:
        return None
    old, new = _HEX.search(before), _HEX.search(after)
    if old and new:
        first, last = int(old.group(1), 16), int(new.group(1), 16)
        slowed = bool((first | last) & _NOW or last & ~first & _SINCE_BOOT)
    else:
        slowed = before != after
    return f'throttled: the board\'s flags were "{before}" before and "{after}" after the run' if slowed else None
