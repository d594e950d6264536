"""What every split does to the answers: nothing in float, and what INT8 costs, on the ELPV test part.

The deployed halves of `elpv_lite0` run as a board and a server run them: the edge half in LiteRT, what crosses as it is
sent, the server half in ONNX Runtime. The float model in one piece is the reference. Remote only by JPEG files stands
beside, since they are what a split competes with.

Usage: python benchmarks/methods/split_accuracy.py [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from figures import table
from jobs import Store
from latency_tables import LITE0, WORK, bundle_of, jpeg_file
from numpy.typing import NDArray
from stamp import take_stamp

from calib.gate.deployed import deployed_outputs, float_outputs, server_session
from runtime_server.jpeg import decode_jpeg
from splitboard.cli.console import steps
from splitboard.contract.bundle import Bundle, load_bundle
from splitboard.contract.preprocess import prepare
from splitboard.zoo import elpv

PRECISIONS = ("fp32", "int8")
JPEG_QUALITIES = (90, 75)
Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Judging:
    """One bundle, judged.

    Attributes:
        precision: of the edge halves.
        n_images: the first ones of the test part; 0 for all.
    """

    precision: str
    n_images: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"accuracy-{self.precision}"


def judged(found: Outputs, reference: Outputs, labels: Mapping[str, NDArray[np.int64]]) -> dict[str, dict[str, float]]:
    """By task: how many answers are right, how many are not the reference's, and the largest difference of scores.

    Args:
        found: class scores by task, ``[n, classes]``.
        reference: likewise.
        labels: true classes by task, ``[n]``.
    """
    return {
        task: {
            "right": int((found[task].argmax(1) == truth).sum()),
            "changed": int((found[task].argmax(1) != reference[task].argmax(1)).sum()),
            "relative_error": float(np.abs(found[task] - reference[task]).max() / np.abs(reference[task]).max()),
        }
        for task, truth in labels.items()
    }


def jpeg_outputs(folder: Any, bundle: Bundle, images: NDArray[np.uint8], quality: int) -> Outputs:
    """Remote only, every image through a JPEG file."""
    remote = bundle.splits[0]
    session, names = server_session(folder / str(remote.server)), [task.name for task in bundle.tasks]
    results = []
    for image in images:
        file = jpeg_file(prepare(image[None], bundle.preprocessing), quality)
        pixels = decode_jpeg(memoryview(file), remote.tensors[0])
        results.append(session.run(names, {remote.tensors[0].name: pixels}))
    return {name: np.concatenate([one[i] for one in results]) for i, name in enumerate(names)}


def judge(wanted: Judging) -> dict[str, Any]:
    """Every split of the bundle on the images."""
    folder = bundle_of(LITE0, wanted.precision)
    bundle, test = load_bundle(folder), elpv.load().test
    n = wanted.n_images or len(test.images)
    images, labels = test.images[:n], {task: values[:n] for task, values in test.labels.items()}
    with steps(wanted.name) as show:
        reference = float_outputs(folder, bundle, images, show)
        found: dict[str, Outputs] = dict(deployed_outputs(folder, bundle, bundle.splits, images, show))
    if wanted.precision == "int8":
        found |= {f"jpeg{quality}": jpeg_outputs(folder, bundle, images, quality) for quality in JPEG_QUALITIES}
    return {
        "n_images": n,
        "float": judged(reference, reference, labels),
        "splits": {split: judged(outputs, reference, labels) for split, outputs in found.items()},
        "cut_error": {split.id: max(split.float_error.values(), default=0.0) for split in bundle.splits},
        "stamp": asdict(take_stamp()),
    }


def measured_accuracies(*, quick: bool) -> dict[str, Any]:
    """Both precisions, judged where they are not yet.

    Args:
        quick: INT8 alone on 40 images.
    """
    store, found = Store(WORK / "quick" if quick else WORK), {}
    for precision in PRECISIONS[1:] if quick else PRECISIONS:
        wanted = Judging(precision, 40 if quick else 0)
        kept = store.read(wanted)
        if kept is None:
            kept = judge(wanted)
            store.write(wanted, kept)
        found[precision] = kept
    return found


def main() -> None:
    """Judges what is missing, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="INT8 alone, 40 images")
    for precision, one in measured_accuracies(quick=parser.parse_args().quick).items():
        tasks = list(one["float"])
        rows = [
            [split, *(f"{100 * by[task]['right'] / one['n_images']:.2f}" for task in tasks)]
            for split, by in one["splits"].items()
        ]
        print(f"\n{precision}, {one['n_images']} images\n{table(['split', *tasks], rows)}")


if __name__ == "__main__":
    main()
