"""MTL-Split: one backbone for all tasks against one network per task; and where to compute it, over four links.

Usage: python benchmarks/methods/mtl_split.py [--quick] [--store build/results] [--pages docs/results]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import link
from commands import splitboard
from deployed import BOARD, LAST, Deployment, judged, part_file
from figures import Spread, paired, table
from jobs import Store, work_off
from result_page import Page, arguments
from trainings import Setting, Training, settings

from splitboard.contract.bundle import load_bundle
from splitboard.zoo.data import elpv

Make = Callable[[int], Training]
"""A training by its seed."""

ROUNDS, IMAGES = 4, 8


def seeds_of(trainings: Store, setting: Setting) -> list[int]:
    """Those that everything of the comparison has been trained with."""
    return [
        seed
        for seed in setting.few_seeds
        if all(trainings.read(one) for one in (setting.multi_task(seed), setting.pooled(seed), *_single(setting, seed)))
    ]


def _single(setting: Setting, seed: int) -> list[Training]:
    return [setting.single_task(task, seed) for task, _ in setting.network.classes]


def accuracy_table(trainings: Store, setting: Setting) -> str:
    """Single-task against multi-task, and the paper's heads against pooled ones."""
    seeds = seeds_of(trainings, setting)
    tasks = [task for task, _ in setting.network.classes]

    def spread(make: Make, task: str) -> Spread:
        return Spread(tuple(100 * _result(trainings, make(seed))["accuracy"]["test"][task] for seed in seeds))

    alone = {task: spread(partial(setting.single_task, task), task) for task in tasks}
    rows = [_row("one network per task", alone, None, [_result(trainings, one) for one in _single(setting, seeds[0])])]
    for name, make in (
        ("multi-task, the paper's heads", setting.multi_task),
        ("multi-task, pooled heads", setting.pooled),
    ):
        found = {task: spread(make, task) for task in tasks}
        rows.append(_row(name, found, alone, [_result(trainings, make(seeds[0]))]))
    header = ["network", *(f"{task}, %" for task in tasks), *(f"{task}: points gained" for task in tasks)]
    return table([*header, "float32 bytes", "MACs for all tasks"], rows)


def _row(
    name: str, found: Mapping[str, Spread], alone: Mapping[str, Spread] | None, networks: Sequence[Mapping[str, Any]]
) -> list[str]:
    gained = [""] * len(found) if alone is None else [paired(found[t].values, alone[t].values).text() for t in found]
    size = sum(4 * (one["stored"]["weights"] + one["stored"]["other"]) for one in networks)
    work = sum(one["macs"]["run"] for one in networks)
    return [name, *(one.text() for one in found.values()), *gained, f"{size:,}", f"{work / 1e6:.1f} M"]


def _result(trainings: Store, training: Training) -> Mapping[str, Any]:
    found = trainings.read(training)
    assert found is not None, training.name
    return found


def lite0_bundle(store: Store, options: Sequence[str] = ()) -> Path:
    """The shipped checkpoint, an EfficientNet-Lite0 with pooled heads at 224 pixels, cut along its depth.

    With options, a head on the board among them, it is cut behind the pooling alone, where a head has its input.
    """
    zoo = Path(str(files("splitboard.zoo")))
    model = store.path("elpv-lite0.model")
    if not model.exists():
        factory = ("--model", "splitboard.zoo.elpv:lite0", "--spec", zoo / "elpv.toml", "--input", "1x3x224x224")
        splitboard("export", zoo / "elpv_lite0.safetensors", *factory, "-o", model)
    bundle = store.path(".".join(["elpv-lite0", *(one.strip("-") for one in options), "bundle"]))
    if not bundle.exists():
        calibration = part_file(elpv.load().validation, store.path("elpv.all-calibration.npz"))
        cuts = ("--split", PLACED_AT if options else ",".join(LITE0_CUTS), "--calib", calibration)
        splitboard("build", model, "--board", BOARD, *cuts, *options, "-o", bundle)
    return bundle


LITE0_CUTS = ("backbone.blocks.4", "backbone.blocks.10", "backbone.blocks.14", "backbone.final", "flatten")


LITE0_CUTS = ("backbone.blocks.4", "backbone.blocks.10", "backbone.blocks.14", "backbone.final", "flatten")
PLACED_AT = "flatten"


def places(bundle: Path, data: Path, rounds: int, images: int) -> list[link.Cell]:
    """Local only, remote only and split, over all links."""
    return link.measure(bundle, data, link.LINKS, link.variants_of(load_bundle(bundle)), rounds, images)


def placements(store: Store, data: Path, rounds: int, images: int) -> list[link.Cell]:
    """Behind Lite0's pooling at 10 Mbit/s: the server answers both tasks, or one task's head is on the board."""
    found = []
    for options in ((), ("--local", "defect"), ("--local", "cell_type")):
        folder = lite0_bundle(store, options)
        (split,) = (one for one in load_bundle(folder).splits if one.scope == PLACED_AT)
        variant = link.Variant(f"{options[1]} on the board" if options else "both on the server", split.id)
        found += link.measure(folder, data, link.LINKS[1:2], [variant], rounds, images)
    return found


def placement_table(cells: Sequence[link.Cell]) -> str:
    """When and by whom each task is answered."""
    tasks = list(cells[0].accuracy)
    rows = [
        [
            cell.variant.name,
            f"{cell.sent_bytes:,.0f}",
            f"{cell.edge_ms:.1f}",
            *(f"{cell.after_ms(task):.1f}, {next(iter(cell.by[task]))}" for task in tasks),
            *(f"{100 * share:.1f}" for share in cell.accuracy.values()),
        ]
        for cell in cells
    ]
    header = ["heads", "bytes sent", "board, ms", *(f"{task} answered after, ms" for task in tasks)]
    return table([*header, *(f"{task}, %" for task in tasks)], rows)


def interference_table(trainings: Store, deployed: Store, setting: Setting) -> str:
    """What each task loses when something is done to the network that it shares.

    Quantised: the INT8 edge half up to the last feature map, float heads; float minus deployed, mean over the seeds.
    Exited and sparse: the network that was trained so against the plain one of the same seed.
    """
    tasks = [task for task, _ in setting.network.classes]
    seeds = seeds_of(trainings, setting)
    rows = []
    int8 = [found for seed in seeds if (found := deployed.read(Deployment(setting.multi_task(seed)))) is not None]
    if int8:
        losses = {
            t: [100 * (a - b) for one in int8 for a, b in [one["accuracy"][f"backbone.{LAST}"][t]]] for t in tasks
        }
        rows.append(["the backbone quantised to INT8", *(Spread(tuple(losses[t])).text() for t in tasks)])
    plain = {t: [100 * _result(trainings, setting.multi_task(s))["accuracy"]["test"][t] for s in seeds] for t in tasks}
    for name, make in setting.interferences():
        found = [trainings.read(make(seed)) for seed in seeds]
        kept = [(i, one) for i, one in enumerate(found) if one is not None]
        if kept:
            lost = {t: tuple(plain[t][i] - 100 * one["accuracy"]["test"][t] for i, one in kept) for t in tasks}
            rows.append([name, *(Spread(lost[t]).text() for t in tasks)])
    return table(["what is done", *(f"{task}: points lost" for task in tasks)], rows)


def main() -> None:
    """Deploys and measures what is not yet, writes the page."""
    asked = arguments(__doc__ or "")
    trainings, deployed = Store(asked.store / "trainings"), Store(asked.store / "deployments")
    rounds, images = (1, 4) if asked.quick else (ROUNDS, IMAGES)
    parts, data = [ABOUT], {}
    for setting in settings(small=asked.quick):
        jobs = [Deployment(setting.multi_task(seed)) for seed in seeds_of(trainings, setting)]
        work_off(jobs, deployed, partial(judged, trainings))
        parts += [
            f"## {setting.data.name}: one network for all tasks, or one for each",
            f"Mean ± standard deviation, seeds {', '.join(map(str, seeds_of(trainings, setting)))}. "
            "Bytes and multiply-accumulates are of all tasks together.",
            accuracy_table(trainings, setting),
            "Which task pays when something is done to the network that they share:",
            interference_table(trainings, deployed, setting),
        ]
    test = part_file(elpv.load().test, deployed.path("elpv.test.npz"))
    cells = places(lite0_bundle(deployed), test, rounds, images)
    placed = placements(deployed, test, rounds, images)
    parts += [
        "## Where to compute",
        "The shipped checkpoint (EfficientNet-Lite0, pooled heads, 224 pixels), INT8 on the edge. " + link.about(cells),
        link.markdown(cells),
        "## A placement for each task",
        f"Cut at `{PLACED_AT}`, {link.LINKS[1]}.",
        placement_table(placed),
    ]
    data["places"] = [cell.to_json() for cell in [*cells, *placed]]
    print(Page("mtl-split", "MTL-Split", "make results").write(asked.pages, parts, data))


ABOUT = """\
MTL-Split (arXiv 2407.05982) trains one backbone for all tasks, leaves it on the edge and sends its last feature map to
a head per task. Here it is trained beside one network per task, quantised, and cut also where the paper does not."""


if __name__ == "__main__":
    main()
