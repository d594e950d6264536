"""MTL-Split: one backbone for all tasks against one network per task; and where to compute it, over four links.

Usage: python benchmarks/methods/mtl_split.py [--quick] [--store build/results] [--pages docs/results]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import link
from deployed import BEHIND, Deployment, judged
from figures import Spread, paired, table
from jobs import Store, work_off
from result_page import Page, arguments
from shipped import PLACED_AT, Measuring, measured, placement_table
from trainings import Setting, Training, of_interference, of_tasks, task_seeds

Make = Callable[[int], Training]
"""A training by its seed."""

ROUNDS, IMAGES = 3, 8


@dataclass(frozen=True)
class Compared:
    """The networks of one setting for all tasks, for one task each, and with pooled heads.

    Attributes:
        setting: of the data set.
        trainings: where they are kept.
        asked: seeds.
    """

    setting: Setting
    trainings: Store
    asked: tuple[int, ...]

    @property
    def seeds(self) -> list[int]:
        """Those that everything of the comparison has been trained with."""
        return [s for s in self.asked if all(self.trainings.read(one) for one in self.setting.multi_and_single(s))]

    def result(self, training: Training) -> Mapping[str, Any]:
        """Of a training that is finished."""
        found = self.trainings.read(training)
        assert found is not None, training.name
        return found

    def accuracy(self, make: Make, task: str) -> Spread:
        """Percent of the test images, by seed."""
        return Spread(tuple(100 * self.result(make(seed))["accuracy"]["test"][task] for seed in self.seeds))


def accuracy_table(compared: Compared) -> str:
    """Single-task against multi-task, and the paper's heads against pooled ones."""
    setting, first = compared.setting, compared.seeds[0]
    alone = {task: compared.accuracy(partial(setting.single_task, task), task) for task in setting.tasks}
    single = [compared.result(setting.single_task(task, first)) for task in setting.tasks]
    rows = [_row("one network per task", alone, None, single)]
    for name, make in (
        ("multi-task, the paper's heads", setting.multi_task),
        ("multi-task, pooled heads", setting.pooled),
    ):
        found = {task: compared.accuracy(make, task) for task in setting.tasks}
        rows.append(_row(name, found, alone, [compared.result(make(first))]))
    header = ["network", *(f"{t}, %" for t in setting.tasks), *(f"{t}: points gained" for t in setting.tasks)]
    return table([*header, "float32 bytes", "MACs for all tasks"], rows)


def _row(
    name: str, found: Mapping[str, Spread], alone: Mapping[str, Spread] | None, networks: Sequence[Mapping[str, Any]]
) -> list[str]:
    gained = [""] * len(found) if alone is None else [paired(found[t].values, alone[t].values).text() for t in found]
    size = sum(4 * (one["stored"]["weights"] + one["stored"]["other"]) for one in networks)
    work = sum(one["macs"]["run"] for one in networks)
    return [name, *(one.text() for one in found.values()), *gained, f"{size:,}", f"{work / 1e6:.1f} M"]


def interference_table(compared: Compared, deployed: Store) -> str:
    """What each task loses when something is done to the network that it shares.

    Quantised: the INT8 edge half up to the last feature map, float heads; float minus deployed, mean over the seeds.
    Exited and sparse: the network that was trained so against the plain one of the same seed.
    """
    setting, seeds, tasks = compared.setting, compared.seeds, compared.setting.tasks
    int8 = [one for seed in seeds if (one := deployed.read(deployment(setting, seed))) is not None]
    losses = {task: [100 * (a - b) for one in int8 for a, b in [one["accuracy"][BEHIND][task]]] for task in tasks}
    rows = [["the backbone quantised to INT8", f"{len(int8)}", *(Spread(tuple(losses[task])).text() for task in tasks)]]
    for name, make in setting.interferences():
        found = {seed: compared.trainings.read(make(seed)) for seed in seeds}
        kept = {seed: one["accuracy"]["test"] for seed, one in found.items() if one is not None}
        plain = {seed: compared.result(setting.multi_task(seed))["accuracy"]["test"] for seed in kept}
        lost = {task: tuple(100 * (plain[seed][task] - kept[seed][task]) for seed in kept) for task in tasks}
        if kept:
            rows.append([name, f"{len(kept)}", *(Spread(lost[task]).text() for task in tasks)])
    return table(["what is done", "seeds", *(f"{task}: points lost" for task in tasks)], rows)


def deployment(setting: Setting, seed: int) -> Deployment:
    """Of the plain multi-task network."""
    return Deployment(setting.multi_task(seed), setting.cuts)


def main() -> None:
    """Deploys and measures what is not yet, writes the page."""
    asked = arguments(__doc__ or "")
    trainings, deployed = Store(asked.store / "trainings"), Store(asked.store / "deployments")
    measuring = Measuring(link.LINKS[1:2], 1, 4, 40) if asked.quick else Measuring(link.LINKS, ROUNDS, IMAGES, 654)
    parts, data = [ABOUT], {}
    pays = of_interference(small=asked.quick)
    for setting in of_tasks(small=asked.quick):
        compared = Compared(setting, trainings, task_seeds(small=asked.quick))
        parts += [
            f"## {setting.data.name}: one network for all tasks, or one for each",
            _about(compared),
            accuracy_table(compared),
        ]
        data[setting.name] = {
            one.name: compared.result(one) for seed in compared.seeds for one in setting.multi_and_single(seed)
        }
        if setting == pays:
            work_off([deployment(setting, seed) for seed in compared.seeds], deployed, partial(judged, trainings))
            interfering = [make(seed) for seed in compared.seeds for _, make in setting.interferences()]
            data["interference"] = {one.name: found for one in interfering if (found := trainings.read(one))}
            parts += [
                "### Which task pays when something is done to the network that they share",
                INTERFERENCE,
                interference_table(compared, deployed),
            ]
    found = measured(measuring, deployed)
    parts += [
        "## Where to compute",
        "The shipped checkpoint (EfficientNet-Lite0, pooled heads, 224 pixels), INT8 on the edge. "
        + link.about(found.places),
        link.markdown(found.places),
        "## A placement for each task",
        f"Cut at `{PLACED_AT}`, {link.LINKS[1]}.",
        placement_table(found.placements),
        "## What they answer",
        f"Of {measuring.n_judged - link.N_WARM} test images, which is the same over every link.",
        link.accuracy_table(found.judged),
    ]
    data["places"] = [cell.to_json() for cell in [*found.places, *found.placements]]
    data["accuracy"] = {cell.variant.name: cell.accuracy for cell in found.judged}
    print(Page("mtl-split", "MTL-Split", "make results").write(asked.pages, parts, data))


def _about(compared: Compared) -> str:
    setting, counts = compared.setting, compared.result(compared.setting.multi_task(compared.seeds[0]))["n"]
    steps = sum(stage.epochs for stage in setting.recipe.stages) * (counts["train"] // setting.recipe.batch)
    return (
        f"{setting.network.backbone} from random weights at {setting.network.size} pixels, {counts['train']:,} "
        f"training images, {steps} steps of {setting.recipe.batch}, {counts['test']:,} test images; mean ± standard "
        f"deviation, seeds {', '.join(map(str, compared.seeds))}. One network per task has "
        "the paper's head too. Bytes and multiply-accumulates are of all tasks."
    )


INTERFERENCE = """\
Points lost against the plain network of the same seed. Quantised, only the backbone is in INT8, up to the cut of the
paper; exits and sparse layers were there in training. *Everything sparse* leaves the stem, the depthwise filters, the
squeeze-and-excitation and the last layer of each head dense."""

ABOUT = """\
MTL-Split (arXiv 2407.05982) trains one backbone for all tasks, leaves it on the edge and sends its last feature map to
a head per task. Here it is trained beside one network per task, quantised, and cut also where the paper does not."""


if __name__ == "__main__":
    main()
