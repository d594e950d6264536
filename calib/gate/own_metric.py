"""The user's own metric: evaluated in a child process, many rows of samples at once."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calib.gate.metrics import Array, Pair
from calib.gate.statistics import Index
from splitboard.contract.errors import EXIT_USER_ERROR, SplitboardError, UserError

_CHILD = Path(__file__).with_name("metric_child.py")


@contextmanager
def own_pair(name: str, folder: Path, truth: Array, reference: Array, deployed: Array) -> Iterator[Pair]:
    """Yields the metric of the reference and of the deployed outputs as a function of sample numbers.

    Args:
        name: ``pkg.module:function``.
        folder: that the package lies in.
        truth: labels of all samples.
        reference: outputs of all samples.
        deployed: outputs of all samples.

    Raises:
        UserError: from the function, where the user's code refuses or breaks.
    """
    with tempfile.TemporaryDirectory() as work:
        np.savez(Path(work) / "samples.npz", truth=truth, reference=reference, deployed=deployed)

        def values(index: Index) -> NDArray[np.float64]:
            found = _evaluate(name, folder, Path(work), index.reshape(-1, index.shape[-1]))
            return found.reshape(*index.shape[:-1], 2)

        yield values


def require_metric(name: str, folder: Path) -> None:
    """Refuses a metric that cannot be imported, before anything is run.

    Raises:
        UserError: it cannot.
    """
    nothing = np.empty(0)
    with own_pair(name, folder, nothing, nothing, nothing) as pair:
        pair(np.empty((0, 1), np.intp))


def _evaluate(name: str, folder: Path, work: Path, rows: Index) -> NDArray[np.float64]:
    """The metric on every row: ``[rows, 2]``, reference and deployed."""
    np.save(work / "rows.npy", rows)
    request = json.dumps({"metric": name, "folder": str(folder.resolve()), "work": str(work)})
    argv = [sys.executable, "-I", str(_CHILD)]
    done = subprocess.run(argv, input=request, capture_output=True, text=True, check=False)
    if done.returncode == EXIT_USER_ERROR:
        error = json.loads((work / "error.json").read_text(encoding="utf-8"))
        raise UserError(error["message"], error["tries"])
    if done.returncode != 0:
        raise SplitboardError(f'the metric process ended with "{done.returncode}": {done.stderr.strip()[-2000:]}')
    values: NDArray[np.float64] = np.load(work / "values.npy", allow_pickle=False)
    return values
