"""What ``trt-build`` and ``trt-profile`` print."""

from __future__ import annotations

from statistics import median
from typing import List, Optional, Sequence, Tuple

from runtime_edge.tensorrt.compare import Row
from runtime_edge.tensorrt.profile import Looked

_NAME_CHARACTERS = 60


def summary_lines(split: str, looked: Looked) -> List[str]:
    """A split's engine: how many layers in which precision, and what is not as it was asked for."""
    found = looked.findings
    by_number = sorted(found.precisions.items(), key=lambda one: -one[1])
    counts = ", ".join(f"{n} {precision}" for precision, n in by_number)
    lines = [f"{split}: layers: {counts}; {len(found.conversions)} conversions for Q/DQ"]
    lines += [
        f"  not INT8: {one.node} runs in {one.precision}" + (f" ({_short(one.layer)})" if one.layer else "")
        for one in found.not_int8
    ]
    lines += [
        f"  conversion {one.types}{_time(one.time_ns)}: {_short(one.layer)}, for {_short(one.cause)}"
        for one in found.conversions
    ]
    if looked.off_dla:
        lines.append(f"  on the GPU, since DLA cannot: {', '.join(looked.off_dla)}")
    return lines


def profile_lines(split: str, looked: Looked) -> List[str]:
    """The same, and every layer with its time."""
    lines = [*summary_lines(split, looked), _total(looked)]
    for layer in looked.reports:
        lines.append(f"  {_us(layer.time_ns or 0):>10} us  {layer.precision:<10} {layer.kind:<24} {_short(layer.name)}")
    return lines


def comparison_lines(split: str, titles: Tuple[str, str], one: Looked, other: Looked, rows: Sequence[Row]) -> List[str]:
    """Two engines operator by operator, the greatest loss first, and what would mend it."""
    lines = [f"{split}: {titles[0]}{_total(one)}", f"{split}: {titles[1]}{_total(other)}"]
    lines += summary_lines(split, one)[1:]
    lines.append(f"  {titles[0] + ' us':>12} {titles[1] + ' us':>12} {'lost us':>10}  precision  operators")
    for row in rows:
        lost = row.time_ns - row.beside_ns
        names = _short(" + ".join(row.operators) or "layers of no operator")
        lines.append(f"  {_us(row.time_ns):>12} {_us(row.beside_ns):>12} {_us(lost):>10}  {row.precision:<9}  {names}")
        if row.reason:
            lines.append(f"  {'':>36}  slower: {row.reason}; Q/DQ to remove: {', '.join(row.remove)}")
    keep = list(dict.fromkeys(name for row in rows for name in row.keep_float))
    if keep:
        lines.append(f"Try: splitboard build MODEL --keep-float {','.join(keep)}")
    return lines


def _total(looked: Looked) -> str:
    total = sum(looked.side.times.values())
    whole = median(looked.device_ns) if looked.device_ns else 0
    return f"  GPU {_us(whole)} us ({looked.how}); sum of its layers {_us(total)} us"


def _time(time_ns: Optional[int]) -> str:
    return "" if time_ns is None else f" {_us(time_ns)} us"


def _us(ns: float) -> str:
    return f"{ns / 1e3:.1f}"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 3]}..."
