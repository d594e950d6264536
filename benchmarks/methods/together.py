"""All three methods in one network, over links that stand still and links that do not.

One EfficientNet-Lite0 for both tasks of the solar cells: sparse heads, early exits that were trained with the rest, an
INT8 edge half, the split chosen per image. Against it, the plain network of MTL-Split (dense heads, no exits): all of
it on the server behind a JPEG upload, all of it on the board in INT8, and cut behind the backbone as the paper does.

Usage: python benchmarks/methods/together.py [--quick] [--store build/results] [--pages docs/results]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import link
import numpy as np
import pictures
from commands import splitboard
from deployed import Deployment, built, part_file, test_images
from figures import table
from jobs import Store, work_off
from result_page import Page, arguments, between
from stamp import Stamp, from_json, take_stamp
from trainings import PLAIN, TOGETHER, Training, lite0

from splitboard.contract.bundle import load_bundle

SHARE = 0.2
"""Of one processor for the edge: at all of it, this machine answers before a radio has sent the image."""

ALLOWED_DROP_POINTS = 2
CUTS = ("blocks.4", "blocks.10", "blocks.14", "final")
TRACES = (link.Varying("held-out-steps"), link.Varying("held-out-car"))
JPEG_90 = ("--coding", "jpeg", "--jpeg-quality", "90")
IN_README = (link.LINKS[1], TRACES[1])
RATE_HZ = 4
"""On a link that varies, so that its changes come while images do."""

AUTO = "auto"
MTL_SPLIT, JPEG, LOCAL, ALL = "MTL-Split: cut behind the backbone", "remote only, JPEG 90", "local only", "all together"
COLOURS = {MTL_SPLIT: pictures.BLUE, JPEG: pictures.ORANGE, LOCAL: pictures.GREY, ALL: pictures.GREEN}


@dataclass(frozen=True)
class Contest:
    """What is measured, and kept.

    Attributes:
        links: that stand still.
        traces: of links that do not.
        still: rounds over the former, and images of each.
        varying: likewise over the latter.
        n_judged: images that every contestant answers.
        share: of one processor for the edge.
    """

    links: tuple[link.Link, ...] = link.LINKS
    traces: tuple[link.Varying, ...] = TRACES
    still: tuple[int, int] = (3, 24)
    varying: tuple[int, int] = (2, 160)
    n_judged: int = 654
    share: float = SHARE

    name = "together.cells"


QUICK = Contest(link.LINKS[1:2], TRACES[1:], (1, 8), (1, 8), 40)


def variants(plain: Path, together: Path, rules: Path) -> dict[Path, list[link.Variant]]:
    """The contestants by bundle."""
    remote, *_, behind_backbone, local = load_bundle(plain).splits
    return {
        plain: [
            link.Variant(JPEG, remote.id, JPEG_90),
            link.Variant(LOCAL, local.id),
            link.Variant(MTL_SPLIT, behind_backbone.id),
        ],
        together: [link.Variant(ALL, AUTO, ("--exits", str(rules), *JPEG_90))],
    }


def paced(by_bundle: dict[Path, list[link.Variant]]) -> dict[Path, list[link.Variant]]:
    """The same, with so many images a second."""
    rate = ("--rate", str(RATE_HZ))
    return {bundle: [replace(one, options=(*one.options, *rate)) for one in some] for bundle, some in by_bundle.items()}


def rules_of(bundle: Path, training: Training, store: Store, measure: str = "max_softmax") -> Path:
    """Thresholds for the early exits, fitted on the validation images, which nothing else has seen."""
    file = store.path(f"{training.name}.exits.json")
    if not file.exists():
        held_out = part_file(training.data.load().validation, store.path(f"{training.data.name}.validation.npz"))
        asked = ("--drop", str(ALLOWED_DROP_POINTS), "--measure", measure)
        splitboard("thresholds", bundle, "--data", held_out, *asked, "-o", file, verdicts=(0, 2))
    return file


def contest(
    by_bundle: dict[Path, list[link.Variant]],
    data: Path,
    links: Sequence[link.Link | link.Varying],
    rounds: int,
    images: int,
    share: float,
) -> list[link.Cell]:
    """All contestants over all links, in turn within every round."""
    cells: list[link.Cell] = []
    for number in range(rounds):
        found = [
            cell
            for bundle, some in by_bundle.items()
            for cell in link.measure(bundle, data, links, some, 1, images, share, first=number * images)
        ]
        merged = zip(cells, found, strict=True) if cells else ()
        cells = [replace(old, answers=(*old.answers, *new.answers)) for old, new in merged] or found
    return sorted(cells, key=lambda cell: [str(one) for one in links].index(str(cell.link)))


Accuracy = dict[tuple[str, str], dict[str, float]]
"""Share of right answers by contestant and split, by task."""


def accuracies(by_bundle: dict[Path, list[link.Variant]], data: Path, images: int) -> Accuracy:
    """Every contestant on the test images, in each split that it may choose: one process each, over an endless link."""
    found: Accuracy = {}
    for bundle, some in by_bundle.items():
        splits = [split.id for split in load_bundle(bundle).splits]
        asked = [
            replace(one, split=split, options=one.options if split == splits[0] else _without_jpeg(one.options))
            for one in some
            for split in (splits if one.split == AUTO else [one.split])
        ]
        for cell in link.judge(bundle, data, asked, images):
            found[cell.variant.name, cell.variant.split] = cell.accuracy
    return found


def _without_jpeg(options: tuple[str, ...]) -> tuple[str, ...]:
    """A fixed split that sends no image refuses the coding."""
    return tuple(one for one in options if one not in JPEG_90)


def accuracy_of(cell: link.Cell, accuracy: Accuracy, task: str) -> float:
    """On all test images, had they been sent where the cell's were: which split runs does not depend on the image."""
    splits = [split for one in cell.answers for split in one.splits]
    return float(np.mean([accuracy[cell.variant.name, split][task] for split in splits]))


def by_round(cell: link.Cell) -> list[float]:
    """Median milliseconds of every process: what the same thing takes from one start to the next."""
    return [float(np.median(one.total_ms)) for one in cell.answers]


@dataclass(frozen=True)
class Held:
    """The contest's outcome.

    Attributes:
        cells: all contestants over all links.
        accuracy: on the test images.
        stamp: of the measuring.
    """

    cells: list[link.Cell]
    accuracy: Accuracy
    stamp: Stamp


def headline(cells: Sequence[link.Cell], accuracy: Accuracy) -> str:
    """One row per link and contestant."""
    tasks = list(cells[0].accuracy)
    header = [
        "link",
        "answered by",
        "p50 ms (of single rounds)",
        "p95 ms",
        "bytes sent",
        *(f"{task} exits early, %" for task in tasks),
    ]
    rows = [
        [
            str(cell.link),
            cell.variant.name,
            f"{np.median(cell.total_ms):.0f} ({min(by_round(cell)):.0f} to {max(by_round(cell)):.0f})",
            f"{np.percentile(cell.total_ms, 95):.0f}",
            f"{cell.sent_bytes:,.0f}",
            *(f"{100 * cell.exit_rate[task]:.0f}" for task in tasks),
            *(f"{100 * accuracy_of(cell, accuracy, task):.2f}" for task in tasks),
        ]
        for cell in cells
    ]
    return table([*header, *(f"{task}, %" for task in tasks)], rows, left=2)


def picture(target: Path, cells: Sequence[link.Cell], accuracy: Accuracy, task: str) -> None:
    """A panel per link: what an image costs in time, and what is right; the more bytes, the larger the mark."""
    links = list(dict.fromkeys(str(cell.link) for cell in cells))
    columns = (len(links) + 1) // 2
    with pictures.figure(target, 2, columns, (4 * columns, 6), sharey=True) as axes:
        for ax, name in zip([one for row in axes for one in row], links, strict=False):
            # The largest first, so that none hides another.
            for cell in sorted((one for one in cells if str(one.link) == name), key=lambda one: -one.sent_bytes):
                contestant = cell.variant.name
                ax.scatter(
                    [float(np.median(cell.total_ms))],
                    [100 * accuracy_of(cell, accuracy, task)],
                    s=[30 + cell.sent_bytes / 60],
                    color=COLOURS[contestant],
                    label=contestant,
                    edgecolors="black",
                    linewidths=0.5,
                )
            ax.margins(y=0.15)
            ax.set_title(name)
            ax.set_xlim(0, 1.15 * max(float(np.median(cell.total_ms)) for cell in cells if str(cell.link) == name))
            ax.set_xlabel("median latency, ms")
        axes[0][0].set_ylabel(f"{task} right, %")
        axes[1][0].set_ylabel(f"{task} right, %")
        handles, labels = axes[0][0].get_legend_handles_labels()
        axes[0][0].figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def held(asked: Contest, contestants: dict[Path, list[link.Variant]], data: Path, store: Store) -> Held:
    """Measures unless it was measured."""
    kept = store.read(asked)
    if kept is None:
        stamp = take_stamp()
        cells = contest(contestants, data, asked.links, *asked.still, asked.share)
        cells += contest(paced(contestants), data, asked.traces, *asked.varying, asked.share)
        accuracy = accuracies(contestants, data, asked.n_judged)
        kept = {
            "stamp": asdict(stamp),
            "accuracy": [[*key, by_task] for key, by_task in accuracy.items()],
            "cells": [cell.to_json() for cell in cells],
        }
        store.write(asked, kept)
    return Held(
        [*map(link.Cell.from_json, kept["cells"])],
        {(name, split): by_task for name, split, by_task in kept["accuracy"]},
        from_json(kept["stamp"]),
    )


def main() -> None:
    """Deploys what is not deployed yet, measures, writes the page and its picture."""
    asked = arguments(__doc__ or "")
    wanted = QUICK if asked.quick else Contest()
    trainings, deployed = Store(asked.store / "trainings"), Store(asked.store / "deployments")
    plain, together = (Deployment(lite0(one, small=asked.quick), CUTS) for one in (PLAIN, TOGETHER))
    work_off([plain, together], deployed, partial(built, trainings))
    rules = rules_of(together.bundle(deployed), together.training, deployed)
    data = test_images(together.training.data.load(), deployed)
    contestants = variants(plain.bundle(deployed), together.bundle(deployed), rules)
    found = held(wanted, contestants, data, deployed)
    picture(asked.pages / "together.svg", found.cells, found.accuracy, next(iter(found.cells[0].accuracy)))
    parts = [
        ABOUT,
        _measured(wanted, found),
        headline(found.cells, found.accuracy),
        "![Latency, accuracy and bytes per contestant and link](together.svg)",
    ]
    if not asked.quick:
        shown = headline([cell for cell in found.cells if cell.link in IN_README], found.accuracy)
        picture_of_all = "![Latency, accuracy and bytes per contestant and link](docs/results/together.svg)"
        text = "\n\n".join([ABOUT, _measured(wanted, found), shown, picture_of_all])
        between(Path("README.md"), "together", text)
    facts = {
        "accuracy": {" ".join(key): one for key, one in found.accuracy.items()},
        "cells": [{**cell.to_json(), "variant": cell.variant.name} for cell in found.cells],  # options name paths
    }
    print(Page("together", "All three together", "make results").write(asked.pages, parts, facts, found.stamp))


def _measured(asked: Contest, found: Held) -> str:
    rounds, images = asked.varying
    return (
        f"Accuracies are of {asked.n_judged - link.N_WARM} test images, splits weighted by how often they ran here. "
        f"{link.about(found.cells[:1])} On a varying link {images} images in each of {rounds} rounds, {RATE_HZ} a "
        "second, from the beginning of the trace. The processor's share is granted in steps of milliseconds, which let "
        "a short computation behind a pause run ahead: times differ by up to 10 ms for that reason alone, and what is "
        "computed on the edge is faster on varying links. Energy: not measured, this machine has no meter."
    )


ABOUT = f"""\
One EfficientNet-Lite0 at 160 pixels for both tasks of the solar cells, its heads on the flattened feature map as in
MTL-Split with one weight in 8, exits behind its blocks 4 and 10, INT8 on the edge, and the split chosen per image. An
exit answers where the validation images allow at most {ALLOWED_DROP_POINTS} points of loss, and only where something
was to be sent: a local answer is the whole network's. The other three contestants are the same network with
dense heads and without exits, trained in the same way. Each was trained once:
trainings of one network differ by points, so what lies between the two in accuracy is no finding."""


if __name__ == "__main__":
    main()
