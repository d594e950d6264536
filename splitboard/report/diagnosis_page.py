"""A diagnosis as one self-contained HTML page: the noise along the depth, and what the worst layers cost each task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from calib.diagnose.finding import LayerNoise, TaskLoss
from splitboard import __version__
from splitboard.report.diagnosis_text import decibels, findings, headline, loss, percent, told
from splitboard.report.html import templates, write_page
from splitboard.report.outputs import DiagnoseOutput

BEGINNING = "<!DOCTYPE html><!-- splitboard diagnosis -->"
"""Every page begins so."""

_FAINTEST = 1e-3
"""Noise of a task's output that has no colour yet."""

_STRONGEST_PERCENT = 54
"""Share of the colour in the background of the hottest cell: text stays readable on it, in light and in dark."""

_HIGHEST_DB = 60.0
"""Where the bars of the SQNR begin: what is better is not worth looking at."""


def write_diagnosis_page(target: Path, found: DiagnoseOutput) -> None:
    """Writes the page beside ``target`` and renames it into place."""
    write_page(target, render_diagnosis_page(found))


def render_diagnosis_page(found: DiagnoseOutput) -> str:
    """The page's HTML."""
    order = sorted(found.worst, key=lambda one: found.noise_of(one.layer).depth)
    costs = [task for one in order for task in (*one.int8, *one.left_float)]
    return (
        templates()
        .get_template("diagnosis_page.html.j2")
        .render(
            found=found,
            headline=headline(found),
            findings=findings(found),
            layers=order,
            ranks={one.layer: rank for rank, one in enumerate(found.worst, 1)},
            excluded=() if found.exclusion is None else found.exclusion.found,
            strongest=_STRONGEST_PERCENT,
            heat=heat([*found.tasks, *costs]),
            bar=bar_percent,
            told=lambda one: told(one, found.n),
            loss=lambda one: loss(one, found.n),
            percent=percent,
            decibels=decibels,
            version=__version__,
        )
    )


def heat(costs: Iterable[TaskLoss]) -> Mapping[float, int]:
    """By noise of a task's output, the share of colour in its cell in percent: its logarithm, over all cells."""
    noises = {one.noise for one in costs}
    hottest = max(noises, default=0.0)
    if hottest <= _FAINTEST:
        return dict.fromkeys(noises, 0)
    width = math.log(hottest / _FAINTEST)
    return {noise: round(_STRONGEST_PERCENT * math.log(max(noise, _FAINTEST) / _FAINTEST) / width) for noise in noises}


def bar_percent(one: LayerNoise) -> float:
    """Length of a layer's bar: from nothing at 60 dB to all at 0 dB; longer is worse."""
    if one.sqnr_db is None:
        return 0.0
    return 100 * min(1.0, max(0.0, 1 - one.sqnr_db / _HIGHEST_DB))
