"""Pictures of results: SVG files, the same bytes for the same figures.

On white, in colours that stay apart for colour-blind readers: Okabe and Ito's, cividis where there is an order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK, GREY = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#7f7f7f",
)  # fmt: skip
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "splitboard",
    "svg.fonttype": "path",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
_INFINITE_LOG = 0.05
"""Mbit/s that stands for an outage on a logarithmic axis."""


@contextmanager
def figure(target: Path, rows: int, columns: int, size: tuple[float, float], **options: Any) -> Iterator[Any]:
    """Axes, ``[rows][columns]``; saved when the block ends.

    Args:
        target: SVG file.
        rows: of axes.
        columns: of axes.
        size: in inches.
        options: of `matplotlib.pyplot.subplots`.
    """
    with plt.rc_context(_STYLE):
        drawn: Figure
        drawn, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
        yield axes
        target.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(target, dpi=150, metadata={"Date": None})
        plt.close(drawn)


@dataclass(frozen=True)
class HeatMap:
    """Which split is chosen where.

    Attributes:
        title: over the panel.
        y_label: with its unit.
        y: labels of the rows, lowest first.
        x: labels of the columns.
        chosen: names, ``[row][column]``.
        order: all names that may be chosen, from everything on the server to everything on the board.
        worse: whether what was chosen is noticeably worse than the best, ``[row][column]``; such cells get a dot.
    """

    title: str
    y_label: str
    y: Sequence[str]
    x: Sequence[str]
    chosen: Sequence[Sequence[str]]
    order: Sequence[str]
    worse: Sequence[Sequence[bool]]


def heat_maps(target: Path, panels: Sequence[Sequence[HeatMap]], x_label: str) -> None:
    """Panels in rows and columns; a colour says how deep the split is, its name stands in the cells."""
    size = 5.6 * len(panels[0]), 2.75 * len(panels) + 0.5
    with figure(target, len(panels), len(panels[0]), size) as axes:
        for line, drawn in zip(panels, axes, strict=True):
            for panel, ax in zip(line, drawn, strict=True):
                _heat_map(ax, panel)
        for ax in axes[-1]:
            ax.set_xlabel(x_label)


def _heat_map(ax: Axes, panel: HeatMap) -> None:
    colours = mpl.colormaps["cividis"](np.linspace(0.05, 1.0, len(panel.order)))
    depth = np.array([[panel.order.index(name) for name in row] for row in panel.chosen])
    ax.imshow(colours[depth], origin="lower", aspect="auto")
    for row, names in enumerate(panel.chosen):
        for column, name in enumerate(names):
            dark = sum(colours[depth[row, column]][:3]) < 1.4
            same = column > 0 and names[column - 1] == name
            ax.text(
                column, row, "·" if same else name, ha="center", va="center", fontsize=8.5,
                color="white" if dark else "black", fontweight="normal" if same else "bold",
            )  # fmt: skip
            if panel.worse[row][column]:
                ax.plot(column + 0.36, row + 0.32, "o", ms=3.5, color=RED)
    ax.set_xticks(range(len(panel.x)), panel.x)
    ax.set_yticks(range(len(panel.y)), panel.y)
    ax.set_ylabel(panel.y_label)
    ax.set_title(panel.title, loc="left")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def grouped_bars(
    target: Path,
    groups: Sequence[str],
    bars: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
    y_label: str,
    title: str,
    most: float,
) -> None:
    """Bars side by side in groups; one above ``most`` is cut off there and says its value."""
    width = 0.84 / len(bars)
    with figure(target, 1, 1, (10.5, 3.9)) as axes:
        ax = axes[0][0]
        for number, (name, values) in enumerate(bars.items()):
            places = np.arange(len(groups)) + (number - (len(bars) - 1) / 2) * width
            ax.bar(places, np.minimum(values, most), width * 0.92, label=name, color=colours[name])
            for place, value in zip(places, values, strict=True):
                told = f"{value:.0f}" if value >= 10 else f"{value:.1f}"
                ax.text(
                    place, min(value, most) + most * 0.012, told, ha="center", va="bottom",
                    fontsize=7.5, fontweight="bold" if value > most else "normal",
                )  # fmt: skip
        ax.set_xticks(range(len(groups)), groups)
        ax.set_ylim(0, most * 1.08)
        ax.set_ylabel(y_label)
        ax.set_title(title, loc="left", pad=26)
        ax.legend(frameon=False, ncols=len(bars), loc="lower left", bbox_to_anchor=(0, 1.0))


@dataclass(frozen=True)
class Distributions:
    """Cumulative distributions in one panel.

    Attributes:
        title: over the panel.
        shares: of the requests, in percent, ascending.
        values: by name, one per share.
    """

    title: str
    shares: Sequence[float]
    values: Mapping[str, Sequence[float]]


def distributions(
    target: Path, panels: Sequence[Distributions], colours: Mapping[str, str], x_label: str, y_label: str
) -> None:
    """Panels beside each other on a logarithmic axis; the dashed line is the one called ``oracle``."""
    with figure(target, 1, len(panels), (3.6 * len(panels), 3.6), sharey=True) as axes:
        for panel, ax in zip(panels, axes[0], strict=True):
            for name, values in panel.values.items():
                dashed = name == "oracle"
                ax.plot(
                    values, panel.shares, label=name, color=colours[name],
                    linestyle="--" if dashed else "-", linewidth=1.6 if dashed else 2.2, zorder=3 if dashed else 2,
                )  # fmt: skip
            ax.set_xscale("log")
            _plain_log(ax, "x")
            ax.set_title(panel.title, loc="left")
            ax.set_xlabel(x_label)
            ax.grid(alpha=0.25)
        axes[0][0].set_ylabel(y_label)
        axes[0][-1].legend(frameon=False, loc="lower right", fontsize=9)


def timeline(target: Path, shown: Mapping[str, Any], title: str, names: Mapping[str, str], still: str) -> None:
    """A link over time, above what two ways to choose took on it.

    Args:
        target: SVG file.
        shown: ``time_s``, ``rate_mbps``, ``splits``, ``dynamic_ms`` and ``best_ms``, one value per request.
        title: over all.
        names: of the splits, for the legend.
        still: name of the way that stays with one split.
    """
    used = [name for name in names if shown["splits"].count(name) >= len(shown["splits"]) * 0.01]
    palette = dict(zip(used, (ORANGE, GREEN, SKY, PINK, BLUE, YELLOW), strict=False))
    with figure(target, 2, 1, (10.5, 5.0), sharex=True, height_ratios=(1, 1.6)) as axes:
        above, below = axes[0][0], axes[1][0]
        rates = np.maximum(shown["rate_mbps"], _INFINITE_LOG)
        above.step(shown["time_s"], rates, where="post", color="black", linewidth=1.4)
        above.set_yscale("log")
        _plain_log(above, "y")
        above.set_ylabel("link, Mbit/s")
        above.set_title(title, loc="left")
        below.plot(shown["time_s"], shown["best_ms"], ".", ms=3, color=GREY, alpha=0.6, label=still, rasterized=True)
        for name, colour in palette.items():
            chosen = [i for i, split in enumerate(shown["splits"]) if split == name]
            below.plot(
                [shown["time_s"][i] for i in chosen], [shown["dynamic_ms"][i] for i in chosen],
                ".", ms=4, color=colour, label=f"dynamic: {names[name]}", rasterized=True,
            )  # fmt: skip
        below.set_yscale("log")
        _plain_log(below, "y")
        below.set_ylabel("latency of an image, ms")
        below.set_xlabel("time, s")
        below.margins(x=0.01)
        below.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2), markerscale=2.5)
        for ax in (above, below):
            ax.grid(alpha=0.25)


def _plain_log(ax: Axes, which: str) -> None:
    """Numbers as people write them, and a few between the powers of ten."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(mpl.ticker.NullFormatter())
