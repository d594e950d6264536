"""Trains every network of the results, or goes on where it was left; hours on two cores.

Usage: python benchmarks/methods/train_all.py [--quick] [--store build/results]
"""

from __future__ import annotations

import argparse
from itertools import zip_longest
from pathlib import Path

from jobs import WORKERS, Store, work_off
from trainings import PLAIN, TOGETHER, Training, lite0, settings, train


def every_training(*, small: bool) -> list[Training]:
    """The two of the headline, then both data sets in turn."""
    both = zip_longest(*(setting.all() for setting in settings(small=small)))
    headline = [lite0(one, small=small) for one in (PLAIN, TOGETHER)]
    return [*headline, *(one for pair in both for one in pair if one is not None)]


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
