"""Exits and their rules as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from splitboard.contract.exits import ExitRule
from splitboard.report.outputs import FittedExit

NOTE = (
    "without: accuracy of the whole split; combined: of the exit where it is sure, else of the split; drop at most: "
    "upper confidence limit of what is lost, in points; target: the most that this may be, or the accuracy that is kept"
)


_CROSS_VALIDATED = (
    "accuracy: of the float head, cross-validated on these images; better than it is where the model was "
    "trained on them"
)


def print_exits(console: Console, exits: Sequence[FittedExit]) -> None:
    """Prints one row per exit that was added."""
    table = _table("exit", "task", "split", "after module", right=("features", "C", "accuracy"))
    for one in exits:
        penalty, accuracy = f"{one.inverse_penalty:g}", f"{100 * one.accuracy:.2f} %"
        table.add_row(one.output, one.task, one.split, one.scope, str(one.features), penalty, accuracy)
    console.print(table)
    console.print(Text(_CROSS_VALIDATED, style="dim"))


def print_rules(console: Console, rules: Sequence[ExitRule]) -> None:
    """Prints one row per exit of a split."""
    right = ("n", "threshold", "exit rate", "without", "exit alone", "exited", "combined", "drop at most", "target")
    table = _table("split", "exit", "task", right=right)
    for rule in rules:
        table.add_row(rule.split, rule.output, rule.task, *_cells(rule))
    console.print(table)
    console.print(Text(NOTE, style="dim"))
    for reason in dict.fromkeys(
        f"never exits: {rule.output} at {rule.split}: {rule.reason}" for rule in rules if rule.reason
    ):
        console.print(Text(reason, style="yellow"), soft_wrap=True)


def _cells(rule: ExitRule) -> tuple[str, ...]:
    sign = ">" if rule.measure == "max_softmax" else "<"
    never = rule.threshold is None
    return (
        str(rule.n_samples),
        "never" if never else f"{sign} {rule.threshold:.6g}",
        _percent(rule.exit_rate),
        _percent(rule.accuracy),
        _percent(rule.accuracy_exit),
        "" if rule.accuracy_exited is None else _percent(rule.accuracy_exited),
        _percent(rule.accuracy_combined),
        "" if never else f"{100 * rule.drop_upper:.2f}",
        f"{100 * rule.target_drop:g}" if rule.target_accuracy is None else f"{100 * rule.target_accuracy:g} %",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _table(*left: str, right: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for header in left:
        table.add_column(header, overflow="fold")
    for header in right:
        table.add_column(header, justify="right", no_wrap=True)
    return table
