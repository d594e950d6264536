"""What is said of a diagnosis: the same words in the terminal and on the page."""

from __future__ import annotations

from calib.diagnose.finding import TaskLoss
from splitboard.report.gate_text import decimals, share
from splitboard.report.outputs import DiagnoseOutput

_SMALLEST_PERCENT = 0.001


def loss(one: TaskLoss, n: int) -> str:
    """A loss in its unit, without the unit's name; a gain has a minus."""
    if not one.unit:
        return f"{one.loss:.4g}"
    text = f"{one.loss:.{decimals(n)}f}"
    return text if float(text) else text.lstrip("-")


def percent(part: float) -> str:
    """A share with two digits that mean something."""
    value = 100 * part
    if 0 < value < _SMALLEST_PERCENT:
        return f"<{_SMALLEST_PERCENT:g} %"
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.2g} %"


def told(one: TaskLoss, n: int) -> str:
    """One task in a sentence."""
    before, after = (share(v, n) if one.unit else f"{v:.4g}" for v in (one.reference, one.value))
    unit = f" {one.unit}" if one.unit else ""
    return (
        f"{one.task}: {one.metric} {after}, float {before}: loses {loss(one, n)}{unit}, {one.margin:g} allowed; "
        f"its output is off by {percent(one.noise)}"
    )


def headline(found: DiagnoseOutput) -> str:
    """The result in a few words."""
    if found.met:
        return "INT8 meets the gate"
    if found.exclusion is None:
        return "INT8 misses the gate, and no layer can be left in float"
    if not found.exclusion.met:
        return "INT8 misses the gate, and leaving layers in float did not meet it"
    count = len(found.exclusion.found)
    return f"With {count} {'layer' if count == 1 else 'layers'} in float, the gate is met"


def findings(found: DiagnoseOutput) -> tuple[str, ...]:
    """What follows for the user, a sentence each."""
    said = [
        f"Losses are those of these {found.n:,} images, compared with the margin as they are. What they say of others "
        "is for splitboard check to test."
    ]
    looked = len(found.worst)
    if found.exclusion is not None and found.exclusion.met:
        one = found.exclusion
        shorter = {
            1: "",
            2: f" No single one of the {looked} layers looked at is enough.",
        }.get(len(one.found), " None of them can be left out.")
        said.append(f"To keep in float: {', '.join(one.found)}.{shorter}")
    elif found.exclusion is not None:
        said.append(
            f"None of {found.exclusion.tried} lists of the {looked} layers that add most noise meets the gate; the "
            f"best is {', '.join(found.exclusion.found)}. Look at more with --worst {2 * looked}, or into the ranges: "
            "splitboard build --ranges."
        )
    if found.deviation:
        said.append(
            "The edge half was rebuilt from the bundle; its outputs are off the bundle's by "
            f"{percent(found.deviation)} of what INT8 changes, other versions of the tools round otherwise."
        )
    if found.not_judged:
        said.append(f"Not judged, no labels: {', '.join(found.not_judged)}.")
    return tuple(said)


def decibels(value: float | None) -> str:
    """A ratio of signal to noise; no noise has none."""
    return "no noise" if value is None else f"{value:.1f}"
