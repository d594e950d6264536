"""Trains every network of the results, or goes on where it was left; hours on two cores.

Usage: python benchmarks/methods/train_all.py [--quick] [--store build/results]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from jobs import WORKERS, Store, work_off
from trainings import PLAIN, TOGETHER, Training, lite0, of_interference, of_sparsity, of_tasks, task_seeds, train


def every_training(*, small: bool) -> list[Training]:
    """Those of the headline, then seed by seed, so that pages can be made of the seeds that are finished."""
    by_seed: dict[int, list[Training]] = {}
    for setting in of_sparsity(small=small):
        for one in setting.densities():
            by_seed.setdefault(one.recipe.seed, []).append(one)
    for seed in task_seeds(small=small):
        by_seed[seed] += [one for setting in of_tasks(small=small) for one in setting.multi_and_single(seed)]
        by_seed[seed] += [make(seed) for _, make in of_interference(small=small).interferences()]
    headline = [lite0(one, small=small) for one in (PLAIN, TOGETHER)]
    return [*headline, *(one for some in by_seed.values() for one in some)]


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--store", type=Path, default=Path("build/results"))
    parser.add_argument("--workers", type=int, default=WORKERS)
    options = parser.parse_args()
    work_off(every_training(small=options.quick), Store(options.store / "trainings"), train, options.workers)


if __name__ == "__main__":
    main()
