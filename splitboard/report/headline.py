"""The result in words: which split was fastest, and what deploying it cost each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from splitboard.report.results import SplitResult, Summary
from splitboard.report.table import EMULATED


@dataclass(frozen=True)
class Headline:
    """The first lines of the report.

    Attributes:
        title: one short sentence.
        sentences: what supports it.
    """

    title: str
    sentences: tuple[str, ...]


def headline(summary: Summary, machine: str) -> Headline:
    """Says no more than the samples support: medians whose 95 % intervals overlap are not told apart.

    Args:
        summary: of `summarise`.
        machine: architecture of the board, e.g. ``aarch64``.
    """
    ranked = sorted(
        (split for split in summary.splits if split.total_ms_p50 is not None and not split.inconclusive),
        key=lambda split: split.total_ms_p50 or 0.0,
    )
    if not ranked:
        return Headline(*_no_times(summary.splits))
    best = ranked[0]
    ties = [other for other in ranked[1:] if _overlap(best, other)]
    verdict = "had the lowest median" if ties else "was fastest"
    name = _name(best)
    title = f"{name[0].upper()}{name[1:]} {verdict}: {_ms(best.total_ms_p50)} end to end"
    sentences = [_compared(best, ranked[1:], machine)]
    if ties:
        sentences.append(
            f"The 95 % interval of its median overlaps with that of {_listed([_name(tie) for tie in ties])}: "
            "these runs cannot tell them apart."
        )
    if left_out := [split.id for split in summary.splits if split not in ranked]:
        sentences.append(f"Left out of this ranking: {_listed(left_out)} (no conclusive times).")
    return Headline(title, (*sentences, *_accuracy_sentences(summary, best)))


def _no_times(splits: Sequence[SplitResult]) -> tuple[str, tuple[str, ...]]:
    if all(split.emulated for split in splits):
        return "Every split ran on the emulated board", (
            f"{EMULATED.capitalize()}. An emulated processor proves that the parts work, not how long they take.",
        )
    return "Inconclusive: no split has times that can be compared", (
        "The samples are too few or the board was throttled; see the notes beside each split.",
    )


def _compared(best: SplitResult, others: Sequence[SplitResult], machine: str) -> str:
    """The two ends and the best split between them, as far as they are not the best themselves."""
    between = [other for other in others if other.kind == "split"][: 1 if best.kind != "split" else 0]
    rivals = [*(other for other in others if other.kind != "split"), *between]
    against = (
        _listed([f"{_name(rival)} {_ms(rival.total_ms_p50)}" for rival in rivals]) if rivals else "nothing else ran"
    )
    return f"Against it: {against}. Medians on this {machine} machine (board kind {best.board}) over this link."


def _accuracy_sentences(summary: Summary, best: SplitResult) -> list[str]:
    compared = [one for one in summary.comparisons if one.split == best.id]
    if not compared:
        return ["Accuracy was not measured: the images have no labels."]
    sentences = []
    for one in compared:
        deployed = f"On {one.task}, {100 * one.int8:.2f} % of {one.n} images are right as deployed"
        if one.float_ is None:
            sentences.append(f"{deployed}; no float reference was recorded.")
            continue
        same_task = [other for other in summary.comparisons if other.task == one.task]
        worst = max(same_task, key=lambda other: other.drop_points or 0.0)
        loss_points = worst.drop_points or 0.0
        most = (
            f"The largest loss is on {worst.split}: {loss_points:.2f} points."
            if loss_points > 0
            else "No split does worse than float."
        )
        sentences.append(f"{deployed}, {100 * one.float_:.2f} % in float ({points(one.drop_points)}). {most}")
    return sentences


def points(drop_points: float | None) -> str:
    """A drop in percentage points, in words."""
    if drop_points is None:
        return "not compared"
    if drop_points == 0:
        return "unchanged"
    return f"{abs(drop_points):.2f} points {'lost' if drop_points > 0 else 'gained'}"


def _overlap(one: SplitResult, other: SplitResult) -> bool:
    ends = (one.total_ms_p50_high, other.total_ms_p50_low)
    return None not in ends and (one.total_ms_p50_high or 0.0) >= (other.total_ms_p50_low or 0.0)


def _name(split: SplitResult) -> str:
    return f"{split.kind} only ({split.id})" if split.kind != "split" else f"{split.id} (after {split.scope})"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:#.3g} ms" if value < 100 else f"{value:.0f} ms"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
