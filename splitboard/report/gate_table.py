"""The gate's judgements as a table: for the terminal (Rich) and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from calib.gate.judgement import Judgement
from splitboard.report.gate_text import amount, interval, metric_value, p_value

_STYLES = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}
_LEFT = ("split", "task", "metric", "verdict")
_MARKDOWN_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#"})

NOTE = (
    "drop: reference minus deployed (minus it where lower is better), in points for shares; interval: one-sided limits "
    "each, rounded outwards; McNemar p: exact, of any change at all"
)


def print_judgements(console: Console, judgements: Sequence[Judgement]) -> None:
    """Prints one row per split and task."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for header in _headers(judgements):
        table.add_column(header, justify="left" if header in _LEFT else "right", no_wrap=header != "task")
    for one in judgements:
        *cells, verdict = _cells(one)
        table.add_row(*(Text(cell) for cell in cells), Text(verdict, style=_STYLES[verdict]))
    console.print(table)
    console.print(Text(NOTE, style="dim"))


def markdown_judgements(judgements: Sequence[Judgement]) -> str:
    """The same table in Markdown."""
    headers = _headers(judgements)
    rows = [
        headers,
        [":---" if header in _LEFT else "---:" for header in headers],
        *([escaped(cell) for cell in _cells(one)] for one in judgements),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + f"\n\n{NOTE}\n"


def escaped(text: str) -> str:
    """Text that Markdown does not read as markup."""
    return " ".join(text.translate(_MARKDOWN_SPECIAL).split())


def _headers(judgements: Sequence[Judgement]) -> list[str]:
    against = judgements[0].against
    before = ["split", "task", "metric", "n", against, "deployed", "drop", "interval", "allowed"]
    return [*before, "lost", "gained", "McNemar p", "verdict"]


def _cells(one: Judgement) -> list[str]:
    low, high = interval(one)
    return [
        one.split,
        one.task,
        one.metric,
        f"{one.n:,}",
        metric_value(one.reference, one),
        metric_value(one.deployed, one),
        amount(one.drop, one),
        f"{low} to {high}",
        f"{one.margin:g}",
        "" if one.lost is None else str(one.lost),
        "" if one.gained is None else str(one.gained),
        "" if one.mcnemar_p is None else p_value(one.mcnemar_p),
        one.verdict,
    ]
