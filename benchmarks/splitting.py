"""How long do export, listing and proving of splits take?

Exports EfficientNet-Lite0 with two heads (aim: 15 s, simplification and parity included), then a network of about 500
nodes (EfficientNet-B0's widths at EfficientNet-B4's depth, 224x224): all its split points are listed (aim: 1 s), every
single-tensor split is cut and proved (aim: 20 s on 2 cores), and beside that the plain way to prove the same: both
halves of each split and the whole model run on their own. Random weights; only the time counts.

Usage: python benchmarks/splitting.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from output import show
from torch import nn

from export.exported import ExportRequest
from export.exporter import export_model
from export.inputs import InputRequest
from export.model import Model, load_model
from export.splits import list_splits
from export.verify import verify_all, verify_cut
from splitboard import __version__
from splitboard.cli.splits import seeded_inputs
from splitboard.zoo.efficientnet import MBConv
from splitboard.zoo.efficientnet_lite import EfficientNetLite0
from splitboard.zoo.multitask import MultiTaskNet

_CLASSES = {"left": 3, "right": 3}
_SHAPE = (1, 3, 224, 224)
_PLAIN_SHARE = 8
"""The plain way takes minutes; it is run for every eighth split and reported per split."""

_STAGES = (
    (1, 3, 1, 16, 2),
    (6, 3, 2, 24, 4),
    (6, 5, 2, 40, 4),
    (6, 3, 2, 80, 6),
    (6, 5, 1, 112, 6),
    (6, 5, 2, 192, 8),
    (6, 3, 1, 320, 2),
)
"""(expansion, kernel, first stride, channels, blocks): EfficientNet-B0's stages with EfficientNet-B4's number of blocks
(arXiv 1905.11946)."""


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with two heads."""
    return MultiTaskNet(EfficientNetLite0(), EfficientNetLite0.channels, _CLASSES)


def deep() -> nn.Module:
    """About 500 nodes once exported."""
    blocks: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, padding=1)]
    inputs = 32
    for expansion, kernel, stride, outputs, repeats in _STAGES:
        for repeat in range(repeats):
            blocks.append(MBConv(inputs, outputs, kernel, stride if repeat == 0 else 1, expansion, 0.0))
            inputs = outputs
    return MultiTaskNet(nn.Sequential(*blocks), inputs, _CLASSES)


def exported(factory: Callable[[], nn.Module], folder: Path) -> tuple[Model, float]:
    """The model folder of a factory of this file, and the seconds that the export took."""
    name = factory.__name__
    torch.save(factory().state_dict(), folder / f"{name}.pt")
    request = ExportRequest(
        folder / f"{name}.pt",
        name,
        f"splitting:{name}",
        (InputRequest("image", _SHAPE),),
        source_folder=Path(__file__).parent,
    )
    start = time.perf_counter()
    export_model(request, folder / name)
    return load_model(folder / name), time.perf_counter() - start


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What some work returns, and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        small, seconds = exported(lite0, Path(work))
        rows.append(row("export EfficientNet-Lite0", small, 1, seconds, 15.0))
        model, seconds = exported(deep, Path(work))
        rows.append(row("export the deep network", model, 1, seconds, None))
    splits, seconds = timed(lambda: list_splits(model))
    rows.append(row("list all split points", model, len(splits.points), seconds, 1.0))
    single = {name: cut for name, cut in splits.cuts.items() if len(cut.crossing) == 1}
    sample = seeded_inputs(model)
    _, seconds = timed(lambda: verify_all(model.graph, single, sample))
    rows.append(row("prove every single-tensor split", model, len(single), seconds, 20.0))
    some = list(single.values())[::_PLAIN_SHARE]
    _, seconds = timed(lambda: [verify_cut(model.graph, cut, [sample]) for cut in some])
    rows.append(row("prove one by one (some of them)", model, len(some), seconds, None))
    _, seconds = timed(lambda: verify_all(model.graph, splits.cuts, sample))
    rows.append(row("prove every split", model, len(splits.cuts), seconds, None))
    show(rows, f"splitboard {__version__}", "one run each, in this order", as_json=options.json)


def row(what: str, model: Model, count: int, seconds: float, aim: float | None) -> dict[str, Any]:
    """One line of the table."""
    return {
        "what": what,
        "nodes": len(model.graph.nodes),
        "count": count,
        "seconds": seconds,
        "ms each": 1e3 * seconds / count,
        "aim s": "-" if aim is None else aim,
    }


if __name__ == "__main__":
    sys.exit(main())
