"""What is said of a judgement: the same words in the terminal, in JUnit XML, on GitHub and in pytest."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calib.gate.judgement import Detectable, Judgement

_SMALLEST_P = 0.001


def decimals(n: int) -> int:
    """Decimals of a percentage of ``n`` samples: what it takes to tell two counts apart, and no more."""
    return max(0, math.ceil(math.log10(n / 100))) if n > 0 else 0


def share(value: float, n: int) -> str:
    """A share from 0 to 1 as a percentage."""
    return f"{100 * value:.{decimals(n)}f} %"


def amount(value: float, one: Judgement) -> str:
    """A drop, in the judgement's unit but without its name."""
    return _fixed(value, decimals(one.n)) if one.unit else f"{value:.4g}"


def _fixed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if not float(text) else text


def interval(one: Judgement) -> tuple[str, str]:
    """Both limits; of a share, rounded outwards to the decimals that the set supports."""
    if not one.unit:
        return amount(one.lower, one), amount(one.upper, one)
    step = 10 ** decimals(one.n)
    # The product of a limit and a power of ten may miss a whole number by a rounding.
    low, high = math.floor(one.lower * step + 1e-9) / step, math.ceil(one.upper * step - 1e-9) / step
    return _fixed(low, decimals(one.n)), _fixed(high, decimals(one.n))


def metric_value(value: float, one: Judgement) -> str:
    """The metric itself."""
    return share(value, one.n) if one.unit else f"{value:.4g}"


def p_value(p: float) -> str:
    """A p-value with three decimals."""
    return f"<{_SMALLEST_P}" if p < _SMALLEST_P else f"{p:.3f}"


def flips(one: Judgement) -> str:
    """Samples lost and gained, where they can be counted."""
    return "" if one.lost is None else f"{one.lost} lost, {one.gained} gained of {one.n}"


def name(one: Judgement) -> str:
    """Split and task."""
    return f"{one.split}, {one.task}"


def reason(one: Judgement) -> str:
    """Why the verdict is what it is, in one line."""
    low, high = interval(one)
    unit = f" {one.unit}" if one.unit else ""
    counted = flips(one) or f"{one.n} samples"
    values = f"{metric_value(one.deployed, one)} deployed, {metric_value(one.reference, one)} {one.against}"
    lost = f"{name(one)}: {one.metric} {values}: drop {amount(one.drop, one)}{unit} ({counted})"
    allowed = f"{one.margin:g}{unit if one.margin != 1 else unit.removesuffix('s')} allowed"
    sure = f"with {100 * one.confidence:g} % confidence"
    if one.verdict == "PASS":
        return f"{lost}; at most {high}{unit} {sure}, {allowed}"
    if one.verdict == "FAIL":
        return f"{lost}; more than the {allowed}, p {p_value(one.p_holm)} after Holm's correction"
    return f"{lost}; between {low} and {high}{unit}, {allowed}: {_would_tell(one)}"


def explained(one: Judgement) -> str:
    """The verdict and its reason."""
    return f"{one.verdict}: {reason(one)}"


def _would_tell(one: Judgement) -> str:
    if one.samples_needed is None:
        return "a drop that equals the margin is told by no number of samples"
    if one.samples_needed <= one.n:
        return f"{one.n} samples only just do not tell, some more would"
    return f"{one.n} samples do not tell, about {_rounded(one.samples_needed):,} would"


def _rounded(count: int) -> int:
    """Two digits, upwards: the shares that it is computed from are no more exact."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // step) * step


def ability(one: Detectable) -> str:
    """What a set can detect at all, before the run."""
    head = f"{one.task} ({one.metric}, {one.n} samples)"
    if one.n_needed is None and one.drop is None:
        if one.n_passing is None and one.n_lost is None and one.margin:
            return f"{head}: what this set can detect depends on the spread of the errors, which the run shows"
        return f"{head}: this set can detect no drop at all"
    digits = decimals(one.n)
    detects = (
        "this set can detect no drop at all"
        if one.drop is None
        else f"this set can only detect a drop of {_fixed(one.drop, digits)} points or more ({one.n_lost} lost, none "
        f"gained), {one.margin:g} allowed"
    )
    if one.n_passing is None:
        needed = "a margin above 0" if one.n_needed is None else f"{one.n_needed:,} samples"
        return f"{head}: {detects}; it cannot PASS if nothing changes: that needs {needed}"
    return f"{head}: {detects}; it can PASS with at most {one.n_passing} lost"


def overview(judgements: Sequence[Judgement]) -> str:
    """How many of each verdict."""
    counts = [
        f"{sum(one.verdict == verdict for one in judgements)} {verdict}" for verdict in ("PASS", "FAIL", "INCONCLUSIVE")
    ]
    return ", ".join(counts)
