"""What is said of one task on one split. Types alone: reports and schemas need no statistics to read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reference = Literal["float", "baseline"]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
SEVERITY: tuple[Verdict, ...] = ("PASS", "INCONCLUSIVE", "FAIL")
"""From the best to the worst."""


@dataclass(frozen=True)
class Judgement:
    """One task on one split, judged.

    A drop is what was lost: reference minus deployed, or deployed minus reference where lower is better. Of shares
    (unit ``points``), drop, limits and margin are percentage points; of other metrics, in the metric's own unit.

    Attributes:
        split: id.
        task: name.
        metric: as in ``gate.toml``.
        unit: ``points`` for shares, empty where the metric has a unit of its own.
        against: what the reference is, ``float`` or ``baseline``.
        n: different samples.
        reference: the metric of the reference; shares from 0 to 1.
        deployed: the metric as deployed; shares from 0 to 1.
        drop: what was lost; negative where deploying gained.
        lower: one-sided lower limit of the drop.
        upper: one-sided upper limit of the drop.
        margin: allowed drop.
        confidence: of each limit.
        detectable: the smallest drop that a set of this size can call FAIL, all of it lost and nothing gained; null
            where that depends on the spread of the errors.
        lost: samples that only the reference gets right; null where samples are not right or wrong.
        gained: samples that only the deployed path gets right; null as above.
        mcnemar_p: exact two-sided p-value against "nothing changed"; null as above.
        p: one-sided p-value against "the drop is at most the margin", for this split and task alone.
        p_holm: the same after Holm's correction over all splits and tasks; FAIL where it is at most 1 - confidence.
        verdict: PASS, FAIL or INCONCLUSIVE.
        samples_needed: how many samples would tell at the shares seen here; null where there is a verdict or where
            no number would.
    """

    split: str
    task: str
    metric: str
    unit: str
    against: Reference
    n: int
    reference: float
    deployed: float
    drop: float
    lower: float
    upper: float
    margin: float
    confidence: float
    detectable: float | None
    lost: int | None
    gained: int | None
    mcnemar_p: float | None
    p: float
    p_holm: float
    verdict: Verdict
    samples_needed: int | None


@dataclass(frozen=True)
class Detectable:
    """What a set of this size can tell at all, before anything is run.

    Exact: only the number of samples and their labels go in. The case is the clearest one, in which what changes is
    lost and nothing gained; any gain makes the set tell less.

    Attributes:
        task: name.
        metric: as in ``gate.toml``.
        n: samples.
        margin: allowed drop in points; own unit for other metrics.
        drop: the smallest drop that FAILs, in points, Holm's correction included; ``None`` where no drop does, or where
            it depends on the spread of errors that only the run shows.
        n_lost: the samples of that drop, of the heaviest weight.
        n_passing: the most lost samples that still PASS; ``None`` where not even "nothing changed" does.
        n_needed: the samples that "nothing changed" needs to PASS.
    """

    task: str
    metric: str
    n: int
    margin: float
    drop: float | None
    n_lost: int | None
    n_passing: int | None
    n_needed: int | None
