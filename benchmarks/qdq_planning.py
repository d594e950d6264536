"""How long does it take to plan and write the Q/DQ edge halves of all splits of a model, and what do they weigh?

For each model folder, what `splitboard build --board jetson-orin-nano --split all` does between calibration and the
writing of files: the model in the board's opset, one planned, emitted, checked and serialised graph per split, and the
weights of all in one file. Beside the bytes stands what the same graphs weigh with their weights inside.

Usage: python benchmarks/qdq_planning.py --calib calibration.npz MODEL [MODEL ...]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import onnx
import onnxruntime
from output import show

from boards.kinds import load_kind
from calib.dataset import calibration_set
from calib.keep_float import resolve
from calib.qdq.keep import DEPTHWISE, float_layers
from calib.recipe import Recipe, prepare
from export.model import Model, load_model
from export.splits import LOCAL, list_splits
from splitboard.cli.console import steps
from splitboard.cli.edge_half import EdgeHalf
from splitboard.cli.onnx_half import onnx_half

BOARD = "jetson-orin-nano"
N_IMAGES = 8
"""To calibrate on; the time of that is not measured."""


def wanted_of(model: Model) -> dict[str, list[str]]:
    """What the edge half of every split gives, and that of the whole model."""
    cuts = list_splits(model).cuts
    wanted = {
        split: [name for name in where.crossing if name not in model.graph.inputs] for split, where in cuts.items()
    }
    return {**{split: names for split, names in wanted.items() if names}, LOCAL: model.graph.outputs}


def inside(half: EdgeHalf) -> int:
    """Bytes of the graphs with their weights in them."""
    weights = next(content for path, content in half.files.items() if path.endswith(".bin"))
    total = 0
    for path in half.paths.values():
        model = onnx.load_from_string(half.files[path])
        infos = [onnx.external_data_helper.ExternalDataInfo(one) for one in model.graph.initializer]
        total += len(half.files[path]) + sum(info.length or 0 for info in infos)
    return max(total, len(weights))


def measure(folder: Path, calib: Path, rounds: int) -> dict[str, object]:
    """One row."""
    model = load_model(folder)
    graph, wanted = model.whole, wanted_of(model)
    crossing = {name for names in wanted.values() for name in names}
    kept = resolve(graph, model.info.scopes, sorted(float_layers(graph, DEPTHWISE[0])), crossing)
    recipe = Recipe(ranges="minmax", keep_float=kept)
    with calibration_set(str(calib), model.info.declared().source_channels, N_IMAGES, Path()) as data:
        prepared = prepare(graph, crossing, data.inputs(model.info.declared()), recipe, lambda _: None)
    took, worked = [], []
    for _ in range(rounds):
        start, busy = time.perf_counter(), time.process_time()
        half = onnx_half(prepared, dict(wanted), LOCAL, load_kind(BOARD), recipe, None, lambda *_: None)
        took.append(time.perf_counter() - start)
        worked.append(time.process_time() - busy)
    return {
        "model": model.info.name,
        "splits": len(wanted),
        "seconds": statistics.median(took),
        "of the processor": statistics.median(worked),
        "edge MB": sum(map(len, half.files.values())) / 1e6,
        "weights inside, MB": inside(half) / 1e6,
    }


def main() -> None:
    """Plans, writes, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", type=Path, nargs="+", help="model folders, from splitboard export")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with steps("benchmark") as progress:
        for done, folder in enumerate(options.models):
            progress(folder.name, done, len(options.models))
            rows.append(measure(folder, options.calib, options.rounds))
    about = f"median of {options.rounds} rounds, all cuts of the model and local only, for {BOARD}"
    show(rows, f"onnxruntime {onnxruntime.__version__}", about, as_json=options.json)


if __name__ == "__main__":
    main()
