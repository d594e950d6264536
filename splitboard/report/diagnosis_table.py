"""A diagnosis in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from calib.diagnose.finding import LayerLoss, TaskLoss
from splitboard.report.diagnosis_text import decibels, findings, headline, loss, percent, told
from splitboard.report.outputs import DiagnoseOutput

NOTE = (
    "added: power of the error that the layer itself makes, as a share of its tensor's; alone in INT8: what a task "
    "loses with this layer in INT8 and all others in float; left in float: with this layer in float and all others as "
    "built; in brackets the error of the task's output"
)


def print_diagnosis(console: Console, found: DiagnoseOutput) -> None:
    """Prints the layers that add most noise, what they cost, and what to do."""
    for one in found.tasks:
        console.print(Text(told(one, found.n)))
    if found.worst:
        console.print(_table(found))
        console.print(Text(NOTE, style="dim"))
    console.print(Text(f"\n{headline(found)}", style="bold"))
    for line in findings(found):
        console.print(Text(line))
    if found.exclusion is not None:
        for one in found.exclusion.tasks:
            console.print(Text(f"  {told(one, found.n)}"))
    if found.command is not None:
        console.print(Text(f"\n{found.command}"), soft_wrap=True)


def _table(found: DiagnoseOutput) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("layer", overflow="fold")
    if found.modules:
        table.add_column("module", overflow="fold")
    for header in ("depth", "SQNR\ndB", "cosine", "added"):
        table.add_column(header, justify="right", no_wrap=True)
    for kind in ("alone in INT8", "left in float"):
        for one in found.tasks:
            table.add_column(f"{kind}\n{one.task}", justify="right")
    for layer in found.worst:
        table.add_row(*(Text(cell) for cell in _cells(found, layer)))
    return table


def _cells(found: DiagnoseOutput, one: LayerLoss) -> list[str]:
    noise = found.noise_of(one.layer)
    module = [found.modules.get(one.layer, "")] if found.modules else []
    return [
        one.layer,
        *module,
        str(noise.depth),
        decibels(noise.sqnr_db),
        f"{noise.cosine:.4f}",
        percent(noise.added),
        *(_cost(task, found.n) for task in (*one.int8, *one.left_float)),
    ]


def _cost(one: TaskLoss, n: int) -> str:
    return f"{loss(one, n)} ({percent(one.noise)})"
