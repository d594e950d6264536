"""The picture of a model's split points: payload, work and memory along the depth, as one self-contained HTML page.

Depth is the position in the order of the network, one step per cut, and not the share of the work: most networks end in
many cuts that cost next to nothing, which would pile up at the right edge, and positions can carry the names of modules
that users know. The share of the work has a strip of its own below, on the same positions.

Positions are percentages and heights are pixels, so the picture fills any width without stretching its texts.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.splits import SplitPoint
from splitboard import __version__
from splitboard.report.html import templates, write_page

BEGINNING = "<!DOCTYPE html><!-- splitboard splits -->"
"""Every page begins so."""

_MULTI_STEP = 0.5
"""Width of a multi-tensor cut's step; any other's is 1. There are many, and the single ones lead."""

_STEP_PX = 6
"""A step of width 1 is never narrower; then the picture scrolls."""

_WIDTHS_PX = {"narrow": 300, "wide": 560, "large": 860}
"""The least width of the picture by the form of the page: on a telephone, from 44 rem and from 66 rem on."""

_LABEL_PX = 15
"""Distance between two labels; those of cuts that are not of the first rank need `_SPARE_PX`."""

_SPARE_PX = 40
_LABEL_CHARACTERS = 22
_CHARACTER_PX = 6.6
"""Height of a character of a slanted label."""

_TITLE_PX = 40
_PAYLOAD_PX = 250
_STRIP_PX = 84
_NOTHING_PX = 26
"""Below the logarithmic scale, for what sends nothing."""

_LOG_MARGIN = 0.15
"""Decades above the highest and below the lowest payload."""


@dataclass(frozen=True)
class Spot:
    """Where a split point stands along the depth.

    Attributes:
        point: which.
        kinds: of ``natural``, ``block``, ``multi`` and ``end``.
        left_percent: of the width, where its step begins.
        width_percent: of its step.
    """

    point: SplitPoint
    kinds: tuple[str, ...]
    left_percent: float
    width_percent: float

    @property
    def x_percent(self) -> float:
        """The middle of the step."""
        return self.left_percent + self.width_percent / 2


@dataclass(frozen=True)
class Tick:
    """A line across a strip.

    Attributes:
        y: pixels from the top of the picture.
        text: at its left.
    """

    y: float
    text: str


@dataclass(frozen=True)
class Strip:
    """One of the charts that stand under one another.

    Attributes:
        title: what it shows.
        top: pixels from the top of the picture.
        bottom: likewise.
        ticks: of its axis.
        outline: SVG path of its values: x from 0 to 100, y in pixels of the picture.
    """

    title: str
    top: float
    bottom: float
    ticks: tuple[Tick, ...]
    outline: str


@dataclass(frozen=True)
class PayloadScale:
    """The logarithmic scale.

    Attributes:
        low: decimal logarithm of the bytes at its bottom.
        high: at its top.
    """

    low: float
    high: float

    @property
    def bottom(self) -> float:
        """Pixels from the top of the picture."""
        return _TITLE_PX + _PAYLOAD_PX

    def y(self, n_bytes: float) -> float:
        """Pixels from the top of the picture; nothing has a place of its own below the scale."""
        if not n_bytes:
            return self.bottom + _NOTHING_PX
        return self.bottom - _PAYLOAD_PX * (math.log10(n_bytes) - self.low) / (self.high - self.low)

    @property
    def round_values(self) -> list[int]:
        """Powers of ten, and on a short scale twice and five times those too."""
        digits = (1, 2, 5) if self.high - self.low < 2 else (1,)
        decades = range(max(math.floor(self.low), 0), math.ceil(self.high))
        values = [digit * 10**decade for decade in decades for digit in digits]
        return [value for value in values if self.low <= math.log10(value) <= self.high]


@dataclass(frozen=True)
class Label:
    """The name of a split point below the picture.

    Attributes:
        x_percent: where.
        id: of the split point.
        text: its module, shortened.
        form: of `_WIDTHS_PX`, the narrowest with room for it.
    """

    x_percent: float
    id: str
    text: str
    form: str


@dataclass(frozen=True)
class Picture:
    """All charts.

    Attributes:
        spots: in the order of depth.
        scale: of the payload.
        strips: payload, multiply-accumulates, memory; from top to bottom.
        labels: below the strips.
        labels_px: room for them.
        min_width_px: narrower than this it scrolls.
    """

    spots: tuple[Spot, ...]
    scale: PayloadScale
    strips: tuple[Strip, Strip, Strip]
    labels: tuple[Label, ...]
    labels_px: float
    min_width_px: float


def write_splits_page(target: Path, name: str, points: Sequence[SplitPoint], remote: SplitPoint) -> None:
    """Writes the page beside ``target`` and renames it into place.

    Args:
        target: the HTML file.
        name: of the model.
        points: what to show; may be empty, and may be without the two ends.
        remote: remote only, whose bytes the others are compared with.
    """
    page = render_splits_page(name, points, remote)
    write_page(target, page)


def render_splits_page(name: str, points: Sequence[SplitPoint], remote: SplitPoint) -> str:
    """The page's HTML; the arguments are those of `write_splits_page`."""
    cuts = [point for point in in_order_of_depth(points, remote) if point.crossing and point.id != remote.id]
    return (
        templates()
        .get_template("splits_page.html.j2")
        .render(
            name=name,
            headline=_headline(cuts),
            findings=findings(cuts, remote),
            picture=draw(points, remote) if points else None,
            single=[point for point in points if not _is_multi(point, remote)],
            multi=[point for point in points if _is_multi(point, remote)],
            verified=any(point.error for point in points),
            remote=remote,
            image="image" if _is_image(remote) else "inputs",
            image_words=_image_words(remote),
            kinds=lambda point: _kinds(point, remote),
            shape=_shape,
            percent=_percent,
            version=__version__,
        )
    )


def in_order_of_depth(points: Iterable[SplitPoint], remote: SplitPoint) -> list[SplitPoint]:
    """Multi-tensor cuts between the single-tensor cuts around them, all others in their own order.

    A cut that shares a tensor with a single-tensor cut comes right after it: the tensor is still alive. Any other comes
    before the first single-tensor cut with as much work on the edge. Between the same two, by that work.
    """
    points = list(points)
    spine = [point for point in points if not _is_multi(point, remote)]
    macs = [point.edge_macs for point in spine]
    after = {one.name: number for number, point in enumerate(spine, 1) for one in point.crossing}
    number = {point.id: position for position, point in enumerate(spine)}
    first = int(bool(spine) and spine[0].id == remote.id)

    def place(point: SplitPoint) -> tuple[int, int, int]:
        if point.id in number:
            return number[point.id], 1, 0
        shared = [after[one.name] for one in point.crossing if one.name in after]
        return max(shared, default=bisect_left(macs, point.edge_macs, lo=first)), 0, point.edge_macs

    return sorted(points, key=place)


def _headline(cuts: Sequence[SplitPoint]) -> str:
    if not cuts:
        return "No cut to show"
    if len(cuts) == 1:
        return f"One cut, {'a' if cuts[0].natural else 'no'} natural bottleneck"
    return f"Natural bottlenecks: {sum(cut.natural for cut in cuts)} of the {len(cuts)} cuts shown"


def findings(cuts: Sequence[SplitPoint], remote: SplitPoint) -> tuple[str, ...]:
    """Sentences on the cuts shown, given in the order of depth and without the two ends."""
    if not cuts:
        return ("Either the model has none, or none passes the filters that this page was written with.",)
    natural = next((cut for cut in cuts if cut.natural), None)
    smaller = next((cut for cut in cuts if cut.int8_bytes < remote.int8_bytes), None)
    smallest = min(cuts, key=lambda cut: cut.int8_bytes)
    image = f"Remote only sends {_image_words(remote)}: {remote.int8_bytes:,} B."
    return (
        "No cut shown carries fewer values than the input of the model."
        if natural is None
        else f"The first natural bottleneck is {_told(natural)}.",
        f"{image} No cut shown sends less."
        if smaller is None
        else f"{image} The first cut that sends less is {smaller.id if smaller is natural else _told(smaller)}.",
        f"The smallest payload is that of {smallest.id if smallest in (natural, smaller) else _told(smallest)}.",
    )


def _told(cut: SplitPoint) -> str:
    return (
        f"{cut.id}, after {cut.scope}: {cut.int8_bytes:,} B at INT8, "
        f"with {_percent(cut.edge_share)} of the multiply-accumulates on the edge"
    )


def _is_image(remote: SplitPoint) -> bool:
    """Whether remote only sends one image in its source form: a byte per value."""
    return len(remote.crossing) == 1 and remote.int8_bytes == math.prod(remote.crossing[0].shape)


def _image_words(remote: SplitPoint) -> str:
    return "the image itself, uint8" if _is_image(remote) else "the inputs as they are"


def _percent(share: float) -> str:
    """One decimal; what is not all is not rounded to all."""
    return ">\u00a099.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"


def _is_multi(point: SplitPoint, remote: SplitPoint) -> bool:
    return len(point.crossing) > 1 and point.id != remote.id


def _kinds(point: SplitPoint, remote: SplitPoint) -> tuple[str, ...]:
    kinds = {
        "natural": point.natural,
        "block": point.block,
        "multi": _is_multi(point, remote),
        "end": point.id == remote.id or not point.crossing,
    }
    return tuple(kind for kind, holds in kinds.items() if holds)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def draw(points: Sequence[SplitPoint], remote: SplitPoint) -> Picture:
    """The picture of at least one split point."""
    spots = _spots(in_order_of_depth(points, remote), remote)
    scale = _payload_scale([remote, *points])
    payload = _payload_strip(spots, scale)
    share = _strip(
        "Multiply-accumulates on the edge",
        payload.bottom + _TITLE_PX,
        [(spot, spot.point.edge_share) for spot in spots],
        {0: "0 %", 0.5: "50 %", 1: "100 %"},
    )
    memory = _strip(
        "Activation memory, estimate",
        share.bottom + _TITLE_PX,
        [(spot, spot.point.edge_peak_bytes) for spot in spots],
        {value: _short_bytes(value) for value in _round_values(max(point.edge_peak_bytes for point in points))},
    )
    # A step of width 1 has the width of the widest.
    min_width_px = 100 * _STEP_PX / max(spot.width_percent for spot in spots)
    labels = _labels(spots, min_width_px)
    longest = max(len(f"{label.text} {label.id}") for label in labels)
    return Picture(spots, scale, (payload, share, memory), labels, 20 + _CHARACTER_PX * longest, min_width_px)


def _spots(points: Sequence[SplitPoint], remote: SplitPoint) -> tuple[Spot, ...]:
    widths = [_MULTI_STEP if _is_multi(point, remote) else 1.0 for point in points]
    unit = 100 / sum(widths)
    lefts = itertools.accumulate(widths, initial=0.0)
    return tuple(
        Spot(point, _kinds(point, remote), unit * left, unit * width)
        for point, left, width in zip(points, lefts, widths, strict=False)
    )


def _payload_scale(points: Iterable[SplitPoint]) -> PayloadScale:
    sent = [math.log10(point.int8_bytes) for point in points if point.int8_bytes]
    # At least a whole decade, so that there are round values on it.
    margin = max(_LOG_MARGIN, (1 - (max(sent) - min(sent))) / 2)
    return PayloadScale(min(sent) - margin, max(sent) + margin)


def _payload_strip(spots: Sequence[Spot], scale: PayloadScale) -> Strip:
    """A line through all but the multi-tensor cuts and what has no place on the scale."""
    ticks = [Tick(scale.y(value), _short_bytes(value)) for value in scale.round_values]
    if not all(spot.point.int8_bytes for spot in spots):
        ticks.append(Tick(scale.y(0), "nothing"))
    on_line = [spot for spot in spots if "multi" not in spot.kinds and spot.point.int8_bytes]
    line = "L".join(f"{spot.x_percent:.3f} {scale.y(spot.point.int8_bytes):.1f}" for spot in on_line)
    bottom = max([scale.bottom, *(tick.y for tick in ticks)])
    return Strip("Payload at INT8, logarithmic", _TITLE_PX, bottom, tuple(ticks), f"M{line}" if line else "")


def _strip(title: str, top: float, values: Sequence[tuple[Spot, float]], axis: dict[float, str]) -> Strip:
    """A strip with a linear scale from zero, its values as a flight of stairs."""
    highest = max(axis)
    bottom = top + _STRIP_PX

    def y(value: float) -> float:
        return bottom - _STRIP_PX * value / highest

    stairs = "".join(f"V{y(value):.1f}H{spot.left_percent + spot.width_percent:.3f}" for spot, value in values)
    ticks = tuple(Tick(y(value), text) for value, text in axis.items())
    return Strip(title, top, bottom, ticks, f"M0 {bottom:.1f}{stairs}V{bottom:.1f}Z")


def _round_values(highest: float) -> list[float]:
    """Zero and two or three round values, the last not below the highest."""
    highest = max(highest, 2)
    rough = highest / 3
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = magnitude * min(digit for digit in (1, 2, 5, 10) if digit * magnitude >= rough)
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def _short_bytes(n: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:g} {unit}"
    return f"{n:g} B"


def _labels(spots: Sequence[Spot], min_width_px: float) -> tuple[Label, ...]:
    """Labels that do not touch: the two ends and whole blocks first, and what else has room on a large page.

    In a model without blocks, natural bottlenecks take their place, and without those all other cuts.
    """
    spine = [spot for spot in spots if "multi" not in spot.kinds] or spots
    ranked = sorted(spine, key=lambda spot: _rank(spot.kinds))
    first_rank = min((rank for spot in ranked if (rank := _rank(spot.kinds))), default=0)
    leading = [spot for spot in ranked if _rank(spot.kinds) <= first_rank]
    kept: dict[str, Label] = {}
    for form, width_px in _WIDTHS_PX.items():
        pixel_percent = 100 / max(width_px, min_width_px)
        for spot in ranked if form == "large" else leading:
            x = spot.x_percent
            room_px = min((abs(x - other.x_percent) / pixel_percent for other in kept.values()), default=math.inf)
            if room_px >= (_LABEL_PX if spot in leading else _SPARE_PX):
                kept[spot.point.id] = Label(x, spot.point.id, _short_scope(spot), form)
    return tuple(sorted(kept.values(), key=lambda label: label.x_percent))


def _rank(kinds: Sequence[str]) -> int:
    return 0 if "end" in kinds else 1 if "block" in kinds else 2 if "natural" in kinds else 3


def _short_scope(spot: Spot) -> str:
    """As many of the last names as fit."""
    scope = f"{spot.point.scope} only" if "end" in spot.kinds else spot.point.scope
    if len(scope) <= _LABEL_CHARACTERS:
        return scope
    tail = scope[-_LABEL_CHARACTERS:]
    return "…" + (tail.partition(".")[2] or tail)
