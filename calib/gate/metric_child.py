"""Runs in a process of its own: imports the user's metric and evaluates it on the rows of samples that it is given.

Started by `calib.gate.own_metric` as a plain script under ``python -I``, so the user's modules never meet ours. The few
functions of ours that it needs are imported before the user's folder is put on the path, and forgotten again by name. A
request is one JSON object on standard input; the answer is ``values.npy`` in the working folder. Exit codes are those
of the command line: 3 with ``error.json`` where the user's input was wrong.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.append(str(Path(__file__).resolve().parents[2]))
from export.child_refusals import Refused, first_line, user_line

sys.path.pop()
for _name in [name for name in sys.modules if name.partition(".")[0] == "export"]:
    del sys.modules[_name]  # theirs may be called so

if TYPE_CHECKING:
    from collections.abc import Callable

_FORM = "write it as package.module:function, a function (truth, outputs) that returns a number"


def load_metric(name: str, folder: Path) -> Callable[[Any, Any], Any]:
    """The user's function."""
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        if user_line(error, folder) is not None:
            raise
        raise Refused(
            f'metric "{name}" cannot be imported from "{folder}": {first_line(error)}',
            _FORM,
            "name the folder that your package lies in with --path",
        ) from error
    if not callable(found):
        raise Refused(f'metric "{name}" is "{type(found).__name__}", not a function', _FORM)
    return found  # type: ignore[no-any-return]  # whatever they wrote, it can be called


def evaluate(request: dict[str, Any], work: Path) -> None:
    """Writes the metric of every row: ``[rows, sets of outputs]``."""
    import numpy as np

    sys.path.insert(0, request["folder"])
    metric = load_metric(request["metric"], Path(request["folder"]))
    with np.load(work / "samples.npz", allow_pickle=False) as arrays:
        truth, sets = arrays["truth"], [arrays["reference"], arrays["deployed"]]
    rows = np.load(work / "rows.npy", allow_pickle=False)
    values = np.empty((len(rows), len(sets)))
    for i, row in enumerate(rows):
        for k, outputs in enumerate(sets):
            value = metric(truth[row], outputs[row])
            try:
                values[i, k] = float(value)
            except (TypeError, ValueError) as error:
                raise Refused(f'metric "{request["metric"]}" returned "{value!r:.60}", not a number', _FORM) from error
            if not math.isfinite(values[i, k]):
                raise Refused(
                    f'metric "{request["metric"]}" returned "{values[i, k]}" on {len(row)} samples',
                    "it is evaluated on resamples too, in which a rare class may be missing",
                )
    np.save(work / "values.npy", values)


def main() -> int:
    """Reads the request, evaluates, and turns the user's errors into one line."""
    request = json.loads(sys.stdin.read())
    work, folder = Path(request["work"]), Path(request["folder"])
    try:
        evaluate(request, work)
    except Refused as error:
        refusal = {"message": str(error), "tries": list(error.tries)}
    except (Exception, SystemExit) as error:  # the user's code may raise anything; its line is what helps them
        where = user_line(error, folder)
        if where is None and not isinstance(error, SystemExit):
            raise
        message = f'{type(error).__name__} in "{where or request["metric"]}": {first_line(error)}'
        refusal = {"message": message, "tries": ["call the metric once yourself on the same samples"]}
    else:
        return 0
    (work / "error.json").write_text(json.dumps(refusal))
    return 3


if __name__ == "__main__":
    sys.exit(main())
