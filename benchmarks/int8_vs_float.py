"""Is the INT8 edge file faster than its own float version?

Shows, for every signature of a bundle's edge file, the latency of the INT8 graph beside the float TFLite file of the
same graph (`export.tflite.convert` on the same model folder), on LiteRT with one thread. Both are run in turn within
every round, signature by signature, and the order alternates, so that both meet the same load and clock. A ratio above
1 means that INT8 is faster. It belongs to the machine that is printed with it: without instructions for INT8 dot
products a processor multiplies INT8 hardly faster than float.

Usage: python benchmarks/int8_vs_float.py demo-out/
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from output import ratio, show

from calib.observe import quantisable
from export.edge_form import edge_form, sums_into_biases
from export.model import load_model
from export.tflite import convert
from runtime_edge.engines.litert import find_interpreter
from splitboard.cli.console import steps
from splitboard.contract.bundle import Bundle, Split, load_bundle
from splitboard.contract.preprocess import edge_image, normalise, quantised_table

Run = Callable[[], object]

_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Instructions for INT8 dot products, as Linux names them on x86 and Arm."""


def dot_products() -> str:
    """Those of them that this processor has."""
    words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    return ", ".join(name for name in _DOT_PRODUCTS if name in words) or "none"


def float_file(model_folder: Path, bundle: Bundle, splits: list[Split], sample: NDArray[np.float32]) -> bytes:
    """The float TFLite file with the signatures of the bundle's edge file."""
    graph = load_model(model_folder).graph
    tasks = [task.name for task in bundle.tasks]
    signatures = {str(split.edge_signature): [tensor.name for tensor in split.tensors] or tasks for split in splits}
    crossing = {name for names in signatures.values() for name in names}
    graph = sums_into_biases(edge_form(graph), crossing)
    with steps("benchmark"):  # keeps the converter's chatter off the terminal
        return convert(graph, signatures, [sample], quantisable(graph, crossing)).content


def runners(file: Path, splits: list[Split], image: NDArray[Any]) -> dict[str, Run]:
    """A call by split that runs its signature once; every signature has been run before."""
    interpreter = find_interpreter().module.Interpreter(model_path=str(file), num_threads=1)

    def runner(split: Split) -> Run:
        signature = interpreter.get_signature_runner(split.edge_signature)
        (name,) = signature.get_input_details()
        return lambda: signature(**{name: image})

    return {split.id: runner(split) for split in splits}


def measure(variants: dict[str, dict[str, Run]], rounds: int, warmup: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by variant and split, one per round."""
    times: dict[str, dict[str, list[float]]] = {name: {split: [] for split in runs} for name, runs in variants.items()}
    names = list(variants)
    for number in range(-warmup, rounds):
        for split in variants[names[0]]:
            for name in names if number % 2 else reversed(names):
                start_ns = time.perf_counter_ns()
                variants[name][split]()
                if number >= 0:
                    times[name][split].append((time.perf_counter_ns() - start_ns) / 1e6)
    return times


def main() -> None:
    """Converts, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("demo_out", type=Path, help="folder with model/ and bundle/, from splitboard demo")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = options.demo_out / "bundle"
    bundle = load_bundle(folder)
    splits = [split for split in bundle.splits if split.edge_signature is not None]
    spec, edge_input = bundle.preprocessing, bundle.edge_input
    with np.load(folder / bundle.golden) as golden:
        pixels = golden["images"][:1]
    real = normalise(pixels, spec)
    table = quantised_table(spec, float(edge_input.scale or 1), int(edge_input.zero_point or 0))
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        file.write(float_file(options.demo_out / "model", bundle, splits, real))
        file.flush()
        nhwc = np.ascontiguousarray(real.transpose(0, 2, 3, 1))
        variants = {
            "float": runners(Path(file.name), splits, nhwc),
            "int8": runners(folder / bundle.edge_files[0], splits, edge_image(pixels, table)),
        }
        times = measure(variants, options.rounds, options.warmup)
    rows = [
        {
            "split": split.id,
            "scope": split.scope,
            "float ms": float(np.median(times["float"][split.id])),
            "int8 ms": float(np.median(times["int8"][split.id])),
            "float / int8": ratio(times["float"][split.id], times["int8"][split.id]),
        }
        for split in splits
    ]
    about = (
        f"medians of {options.rounds} interleaved rounds, one thread; 95 % bootstrap interval of the ratio; "
        f"instructions for INT8 dot products: {dot_products()}"
    )
    show(rows, find_interpreter().name, about, as_json=options.json)


if __name__ == "__main__":
    main()
