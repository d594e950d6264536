"""Predefined sparsity with early exits: what a density costs each task, and what it saves in bytes, work and time.

Densities of the whole network (backbone and the paper's heads, exits as well), each trained from its own first
weights with the same recipe. Storage and work are of the whole network; latencies are of the halves as deployed.

Usage: python benchmarks/methods/sparsity.py [--quick] [--store build/results] [--pages docs/results]
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from deployed import LOCAL, Deployment, built, judged
from exit_rates import Evidence, fitted, sweep
from figures import Spread, paired, table
from half_latencies import EDGE, SERVER, Times, measure
from jobs import Store, work_off
from result_page import Page, arguments
from trainings import DENSE, GRADED, SCORES, Density, Setting, of_sparsity

from splitboard.contract.bundle import load_bundle
from splitboard.contract.exits import MEASURES

ROUNDS = 100
N_DEPLOYED = 1
"""Seeds whose INT8 accuracy is judged."""

LARGEST_LOSS_POINTS = 0.5
LEAST_SAVING = 4.0
LEAST_SPEED_UP = 2.5
SWEPT = {"max_softmax": (0.6, 0.8, 0.9, 0.95, 0.99), "entropy": (0.6, 0.4, 0.2, 0.1, 0.05)}


@dataclass(frozen=True)
class Trained:
    """The networks of one data set that differ in density and seed.

    Attributes:
        setting: of the data set.
        trainings: where they are kept.
    """

    setting: Setting
    trainings: Store

    @property
    def first(self) -> int:
        """The seed of what is timed, and of sizes, which are the same for all seeds."""
        return self.setting.seeds[DENSE][0]

    @property
    def densities(self) -> list[Density]:
        """Those with a finished seed, 1 first."""
        return [density for density in self.setting.seeds if self.seeds(density)]

    def seeds(self, density: Density) -> list[int]:
        """Those that this density and the dense network have been trained with."""
        return [
            seed
            for seed in self.setting.seeds[density]
            if all(self.trainings.read(self.setting.of_density(one, seed)) for one in (DENSE, density))
        ]

    def result(self, density: Density, seed: int) -> Mapping[str, Any]:
        """Of one training."""
        found = self.trainings.read(self.setting.of_density(density, seed))
        assert found is not None
        return found

    def accuracy(self, density: Density, task: str) -> Spread:
        """Percent of the test images, by seed."""
        return Spread(tuple(100 * self.result(density, seed)["accuracy"]["test"][task] for seed in self.seeds(density)))

    def loss(self, density: Density, task: str) -> Spread:
        """Points against the dense network of the same seed."""
        seeds, dense = self.seeds(density), self.accuracy(DENSE, task)
        of_seed = dict(zip(self.seeds(DENSE), dense.values, strict=True))
        return paired([of_seed[seed] for seed in seeds], self.accuracy(density, task).values)

    def mean_loss(self, density: Density) -> Spread:
        """Mean over the tasks, by seed."""
        losses = [self.loss(density, task).values for task in self.setting.tasks]
        return Spread(tuple(float(np.mean(one)) for one in zip(*losses, strict=True)))

    def deployment(self, density: Density, seed: int, precision: str = "int8") -> Deployment:
        """Of one training."""
        return Deployment(self.setting.of_density(density, seed), self.setting.cuts, precision)

    def evidence(self, density: Density, seed: int, task: str, part: str, truth: np.ndarray) -> Evidence:
        """Scores of a task's exits and of its last output."""
        training = self.setting.of_density(density, seed)
        with np.load(self.trainings.path(training.name + SCORES)) as scores:
            exits = [scores[f"{part}.{task}_exit_{one.name}"] for one in training.network.exits]
            return exits, scores[f"{part}.{task}"], truth


def accuracy_table(trained: Trained, deployed: Store) -> str:
    """Accuracy per task and what was lost, in float and as deployed."""
    header = ["density", "seeds", *(f"{task}, %" for task in trained.setting.tasks)]
    header += [
        *(f"{task}: points lost" for task in trained.setting.tasks),
        "mean loss (95 % of the mean)",
        f"lost by INT8, local (seeds: {N_DEPLOYED})",
    ]
    rows = []
    for density in trained.densities:
        mean = trained.mean_loss(density)
        rows.append(
            [
                str(density),
                str(len(trained.seeds(density))),
                *(trained.accuracy(density, task).text() for task in trained.setting.tasks),
                *("" if density == DENSE else trained.loss(density, task).text() for task in trained.setting.tasks),
                "" if density == DENSE else f"{mean.mean:+.2f}{_interval(mean)}",
                _int8(trained, density, deployed),
            ]
        )
    return table(header, rows)


def _interval(spread: Spread) -> str:
    half = spread.half_width()
    return "" if half is None else f" ({spread.mean - half:+.2f} to {spread.mean + half:+.2f})"


def _int8(trained: Trained, density: Density, deployed: Store) -> str:
    """Points that INT8 costs beyond float, by task: mean over the first seeds."""
    found = [deployed.read(trained.deployment(density, seed)) for seed in trained.seeds(density)]
    kept = [one for one in found if one is not None]
    if not kept:
        return "not measured"
    losses = []
    for task in trained.setting.tasks:
        pairs = [one["accuracy"][LOCAL][task] for one in kept]
        losses.append(f"{task} {np.mean([100 * (a - b) for a, b in pairs]):+.2f}")
    return ", ".join(losses)


def size_table(trained: Trained, deployed: Store) -> str:
    """Storage and work of the whole network, and the bundle's files."""
    header = ["density", "weights", "float32 bytes", "smaller", "INT8 bytes", "smaller", "MACs", "less work"]
    header += ["edge file, INT8", "server half at layer2, float"]
    rows = []
    dense = trained.result(DENSE, trained.first)
    for density in trained.densities:
        one = trained.result(density, trained.first)
        stored, work = one["stored"], one["macs"]["run"]
        found = deployed.read(trained.deployment(density, trained.first))
        rows.append(
            [
                str(density),
                f"{stored['weights']:,}",
                f"{_float32_bytes(stored):,}",
                f"{_float32_bytes(dense['stored']) / _float32_bytes(stored):.2f}x",
                f"{_int8_bytes(stored):,}",
                f"{_int8_bytes(dense['stored']) / _int8_bytes(stored):.2f}x",
                f"{work / 1e6:.1f} M",
                f"{dense['macs']['run'] / work:.2f}x",
                *(
                    ("not measured",) * 2
                    if found is None
                    else (f"{found['edge_bytes']:,}", f"{_server_bytes(found, trained.setting.cuts[0]):,}")
                ),
            ]
        )
    return table(header, rows)


def _float32_bytes(stored: Mapping[str, int]) -> int:
    return 4 * (stored["weights"] + stored["other"]) + stored["index_bytes"]


def _int8_bytes(stored: Mapping[str, int]) -> int:
    return stored["weights"] + 4 * stored["other"] + stored["index_bytes"]


def _server_bytes(deployed: Mapping[str, Any], behind: str) -> int:
    sizes, scopes = deployed["server_bytes"], deployed["scopes"]
    return int(next(sizes[split] for split, scope in scopes.items() if scope == f"backbone.{behind}"))


def latencies(trained: Trained, deployed: Store, rounds: int) -> dict[str, Any]:
    """Median milliseconds by precision, density, half and scope; all densities in turn within every round."""
    found: dict[str, Any] = {}
    for precision in ("int8", "fp32"):
        bundles = {
            str(density): trained.deployment(density, trained.first, precision).bundle(deployed)
            for density in trained.densities
        }
        found[precision] = {
            density: {half: _by_scope(bundles[density], by_split) for half, by_split in halves.items()}
            for density, halves in measure(bundles, rounds).items()
        }
    return found


def _by_scope(bundle: Path, by_split: Times) -> dict[str, float]:
    """Medians by the module that a split follows; the ids of a network with shuffles are others."""
    scopes = {split.id: split.scope for split in load_bundle(bundle).splits}
    return {scopes[split]: median(ms) for split, ms in by_split.items()}


def latency_table(found: Mapping[str, Any], behind: str) -> str:
    """Medians, and in brackets how many times faster than the dense one."""
    columns = [
        ("edge to layer2, INT8", "int8", EDGE, f"backbone.{behind}"),
        ("edge to layer2, float", "fp32", EDGE, f"backbone.{behind}"),
        ("server from layer2, float", "int8", SERVER, f"backbone.{behind}"),
        ("all on the board, INT8", "int8", EDGE, LOCAL),
        ("all on the board, float", "fp32", EDGE, LOCAL),
        ("all on the server, float", "int8", SERVER, "remote"),
    ]
    rows = []
    for density in found["int8"]:
        cells = [density]
        for _, precision, half, scope in columns:
            ms, dense = found[precision][density][half][scope], found[precision][str(DENSE)][half][scope]
            cells.append(f"{ms:.2f} ({dense / ms:.2f}x)")
        rows.append(cells)
    return table(["density", *(f"{name}, ms" for name, *_ in columns)], rows)


def exit_table(trained: Trained, allowed: float = 0.005) -> str:
    """What exits answer at the threshold that was fitted on the validation images, by density, task and rule."""
    data = trained.setting.data.load()
    names = [one.at for one in trained.setting.of_density(DENSE, 0).network.exits]
    header = [
        "density",
        "task",
        "rule",
        *(f"exits at {at}, %" for at in names),
        "joint accuracy, %",
        "without exits, %",
    ]
    rows = []
    for density in trained.densities:
        for task in trained.setting.tasks:
            for measured in MEASURES:
                pairs = [
                    tuple(
                        trained.evidence(density, seed, task, name, part.labels[task])
                        for name, part in (("validation", data.validation), ("test", data.test))
                    )
                    for seed in trained.seeds(density)
                ]
                thresholds = [fitted(validation, measured, allowed) for validation, _ in pairs]
                tests = [test for _, test in pairs]
                rows.append([str(density), task, measured, *_exited(tests, measured, thresholds)])
    return table(header, rows, left=3)


def sweep_table(trained: Trained, density: Density) -> str:
    """The same for given thresholds, of one density."""
    data = trained.setting.data.load()
    names = [one.at for one in trained.setting.of_density(density, 0).network.exits]
    header = [
        "task",
        "rule",
        "threshold",
        *(f"exits at {at}, %" for at in names),
        "joint accuracy, %",
        "without exits, %",
    ]
    rows = []
    for task in trained.setting.tasks:
        tests = [
            trained.evidence(density, seed, task, "test", data.test.labels[task]) for seed in trained.seeds(density)
        ]
        for measured in MEASURES:
            for threshold in SWEPT[measured]:
                rows.append([task, measured, f"{threshold:g}", *_exited(tests, measured, [threshold] * len(tests))])
    return table(header, rows, left=2)


def _exited(evidence: Sequence[Evidence], measured: str, thresholds: Sequence[float | None]) -> list[str]:
    """Exit rates, joint accuracy and that of the whole network, means over the seeds. No threshold, no exit."""
    never = {"max_softmax": 1.0, "entropy": 0.0}[measured]
    points = [
        sweep(one, measured, [never if threshold is None else threshold])[0]
        for one, threshold in zip(evidence, thresholds, strict=True)
    ]
    whole = [float(np.mean(last.argmax(axis=1) == truth)) for _, last, truth in evidence]
    rates = np.mean([point.rates for point in points], axis=0)
    joint = float(np.mean([point.accuracy for point in points]))
    return [*(f"{100 * rate:.1f}" for rate in rates), f"{100 * joint:.2f}", f"{100 * float(np.mean(whole)):.2f}"]


def claim(trained: Trained) -> list[str]:
    """Of every density that saves enough, whether its loss is small enough."""
    dense = trained.result(DENSE, trained.first)
    lines = []
    for density in trained.densities[1:]:
        one = trained.result(density, trained.first)
        storage = _float32_bytes(dense["stored"]) / _float32_bytes(one["stored"])
        work = dense["macs"]["run"] / one["macs"]["run"]
        if min(storage, work) < LEAST_SAVING:
            continue
        mean = trained.mean_loss(density)
        met = "met" if mean.mean <= LARGEST_LOSS_POINTS else "**not met**"
        lines.append(
            f"- {trained.setting.data.name}, density {density}: {storage:.1f}x less storage, {work:.1f}x less work, "
            f"mean loss {mean.mean:+.2f} points{_interval(mean)}, seeds: {len(mean.values)}; {met} "
            f"(at most {LARGEST_LOSS_POINTS:g})."
        )
    return lines


def sparse_parts(sizes: str, rounds: int) -> dict[str, Any]:
    """What `benchmarks/sparse_latency.py` measures: the four stages alone, which are all that is sparse, and the whole.

    Args:
        sizes: pixels of the square input, comma-separated.
        rounds: interleaved.
    """
    script = Path(__file__).parents[1] / "sparse_latency.py"
    asked = [sys.executable, script, "--sizes", sizes, "--rounds", str(rounds), "--json"]
    ended = subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def sparse_parts_table(found: Mapping[str, Any]) -> str:
    """How many times faster than dense, with the 95 % interval; one column per engine."""
    engines = list(dict.fromkeys(row["engine"] for row in found["rows"]))
    by_variant: dict[tuple[str, ...], dict[str, str]] = {}
    for row in found["rows"]:
        key = (f"{row['input']}", row["part"], row["variant"])
        by_variant.setdefault(key, {})[row["engine"]] = _faster(row["dense / sparse"])
    rows = [[*key, *(cells[engine] for engine in engines)] for key, cells in by_variant.items()]
    return table(["input", "part", "pattern and density", *engines], rows, left=3)


def _faster(ratio: Mapping[str, float]) -> str:
    return f"{ratio['value']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"


def speed_claim(found: Mapping[str, Any]) -> list[str]:
    """Whether what is sparse runs as much faster as was asked, where the work is at least `LEAST_SAVING` times less."""
    lines = []
    for row in found["rows"]:
        if row["part"] != "four stages" or row["variant"] not in ("grouped 1/4", "grouped 1/8", "grouped 1/16"):
            continue
        met = "met" if row["dense / sparse"]["value"] >= LEAST_SPEED_UP else "**not met**"
        lines.append(
            f"- {row['variant']}, {row['input']} pixels, {row['engine']}: {_faster(row['dense / sparse'])}, {met} "
            f"(at least {LEAST_SPEED_UP:g}x)."
        )
    return lines


def deploy(trained: Trained, deployed: Store) -> None:
    """INT8 for some seeds, which are judged, and float for the one that is timed."""
    int8 = [
        trained.deployment(density, seed)
        for density in trained.densities
        for seed in trained.seeds(density)[:N_DEPLOYED]
    ]
    work_off(int8, deployed, partial(judged, trained.trainings))
    fp32 = [trained.deployment(density, trained.first, "fp32") for density in trained.densities]
    work_off(fp32, deployed, partial(built, trained.trainings))


def main() -> None:
    """Deploys what is not deployed yet, measures, writes the page."""
    asked = arguments(__doc__ or "")
    trainings, deployed = Store(asked.store / "trainings"), Store(asked.store / "deployments")
    parts, data = [ABOUT], {}
    for setting in of_sparsity(small=asked.quick):
        trained = Trained(setting, trainings)
        deploy(trained, deployed)
        found = latencies(trained, deployed, 10 if asked.quick else ROUNDS)
        name = setting.data.name
        data[name] = {
            "trainings": {
                str(density): {seed: trained.result(density, seed) for seed in trained.seeds(density)}
                for density in trained.densities
            },
            "latency_ms": found,
        }
        parts += [
            f"## {name}",
            _about(trained),
            "\n".join(claim(trained)),
            "### Accuracy",
            "Mean ± standard deviation over the seeds; what is lost is against the dense network of the same seed.",
            accuracy_table(trained, deployed),
            "### Storage and work",
            size_table(trained, deployed),
            "### Latency",
            f"Medians of {10 if asked.quick else ROUNDS} interleaved rounds, one thread, seed {trained.first}.",
            latency_table(found, setting.cuts[0]),
            "### Early exits",
            EXITS,
            exit_table(trained),
            f"At given thresholds, density {GRADED}:",
            sweep_table(trained, GRADED),
        ]
    data["sparse_parts"] = sparse_parts("64" if asked.quick else "64,224", 5 if asked.quick else ROUNDS)
    parts += [
        "## The sparse parts alone",
        "The four stages of ResNet18 with random weights, which are all of it that is sparse, and the whole network "
        f"with its dense stem: {data['sparse_parts']['about']}. A scattered pattern, as in the papers, is zeros that "
        "nothing skips: it stands beside to show that.",
        "\n".join(speed_claim(data["sparse_parts"])),
        sparse_parts_table(data["sparse_parts"]),
    ]
    print(Page("sparsity", "Predefined sparsity with early exits", "make results").write(asked.pages, parts, data))


def _about(trained: Trained) -> str:
    one = trained.result(DENSE, trained.first)
    counts = one["n"]
    recipe = trained.setting.recipe
    steps = sum(stage.epochs for stage in recipe.stages) * (counts["train"] // recipe.batch)
    return (
        f"ResNet18 with the paper's heads (flattened feature map, 256 units), exits after its second and third stage; "
        f"{counts['train']:,} training images, {steps} steps of {recipe.batch}, {counts['test']:,} test images."
    )


ABOUT = """\
The paper (arXiv 2407.11763) removes connections before training: every neuron keeps the same number of them, and the
others never exist. Here the whole network is sparse, but for its first convolution and the last layer of every head, in
the form that a board feels: groups of channels with a fixed shuffle between them
([why](../adr/0028-predefined-sparsity.md)). Nothing is masked; what does not exist is neither stored, nor updated, nor
computed. All densities have the same recipe. The one on shapes is the second that was tried, test figures seen: the
first changed the size of the images in its last epoch, which the dense network did not stand either. *1/4 early, 1/8
late* (the first two stages, and the rest with the heads) was added when the test figures of 1/8 were known. The
claim is of the mean over tasks and seeds: where its interval reaches further, these seeds do not exclude a larger loss.
Energy: not measured, this machine has no meter."""


EXITS = """\
One threshold per task, with which the joint answer loses at most half a point on the validation images; the table is of
the test images, of which more may be lost: a few hundred validation images, as of the solar cells, promise little.
`splitboard thresholds` is more careful: there the upper confidence limit of the loss has to stay within what is
allowed."""


if __name__ == "__main__":
    main()
