"""Trains every network of the results, or goes on where it was left; hours on two cores.

Usage: python benchmarks/methods/train_all.py [--quick] [--store build/results]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from jobs import WORKERS, Store, work_off
from result_page import default_store
from trainings import PLAIN, TOGETHER, Training, lite0, of_interference, of_sparsity, of_tasks, task_seeds, train


def every_training(*, small: bool) -> list[Training]:
    """Those of the headline, then seed by seed, so that pages can be made of the seeds that are finished."""
    found = [lite0(one, small=small) for one in (PLAIN, TOGETHER)]
    densities = [one for setting in of_sparsity(small=small) for one in setting.densities()]
    for seed in sorted({one.recipe.seed for one in densities}):
        found += [one for one in densities if one.recipe.seed == seed]
        if seed in task_seeds(small=small):
            found += [one for setting in of_tasks(small=small) for one in setting.multi_and_single(seed)]
    interfering = of_interference(small=small).interferences()
    return [*found, *(make(seed) for seed in task_seeds(small=small) for _, make in interfering)]


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--store", type=Path, help="default: build/results, or build/results-quick")
    parser.add_argument("--workers", type=int, default=WORKERS)
    options = parser.parse_args()
    store = options.store or default_store(quick=options.quick)
    work_off(every_training(small=options.quick), Store(store / "trainings"), train, options.workers)


if __name__ == "__main__":
    main()
