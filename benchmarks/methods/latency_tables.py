"""What every natural bottleneck of the EfficientNet family costs: board, server, payload.

The split points are those that the product finds: outputs of whole blocks that carry strictly fewer values than the
input, beside remote only and local only. Each is exported, cut, built and loaded as `splitboard build` and `splitboard
serve` do it. The board's time is preprocessing and edge half in LiteRT on one thread, one image after the other, since
an edge file takes one image: a batch of k costs k times as much there. The server's is one run of ONNX Runtime on one
thread for the whole batch, as `serve --max-batch 16` does it.

EfficientNet-Lite0 is the trained `elpv_lite0`; EfficientNet-B0 has random weights, since times do not depend on them,
and takes RGB. Batch norms of B0 are fitted to noise, so that its activations have sane ranges.

A time is processor time of the one thread that computes (CLOCK_THREAD_CPUTIME_ID). On a machine that does nothing else
it is the time that passes; on one that does, waiting for a processor is not counted, sharing its caches still is.

Rounds are interleaved: every split and batch size once, in rotating order; raw samples are kept in `build/results`,
medians in `docs/results/data/dynamic-split-tables.json`. What was measured is not measured again.

Usage: python benchmarks/methods/latency_tables.py [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from figures import table
from jobs import Store
from numpy.typing import NDArray
from PIL import Image
from stamp import take_stamp

from boards.kinds import this_machine
from calib.dataset import calibration_set
from calib.recipe import Recipe
from export.choice import choose
from export.exported import ExportRequest
from export.exporter import export_model
from export.inputs import InputRequest
from export.model import load_model
from export.spec import ModelSpec, read_spec
from export.splits import list_splits
from runtime_edge.bench.measure import rotated
from runtime_edge.engines.litert import LiteRtEngine
from runtime_server.jpeg import decode_jpeg
from runtime_server.models import Model, load_models
from splitboard.cli.build import BuildRequest, build_bundle
from splitboard.cli.console import steps
from splitboard.contract.bundle import Bundle, Split, load_bundle
from splitboard.contract.preprocess import edge_image, prepare
from splitboard.contract.samples import save_samples
from splitboard.zoo import elpv

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "results" / "latency"
DATA = ROOT / "docs" / "results" / "data" / "dynamic-split-tables.json"
ZOO = Path(str(files("splitboard.zoo")))

BATCHES = (1, 2, 4, 8, 16)
JPEG_QUALITY = 90
JPEG_SPLIT = f"jpeg{JPEG_QUALITY}"
"""Remote only with the image sent as a JPEG file, where the images are real."""

N_CALIBRATION, N_NORM, N_IMAGES = 64, 48, 64
EDGE_CALLS = 3
"""Of every edge half in every round: it takes a hundredth of what the server's batches take."""

ROUNDS = 11
SEED = 0
Array = NDArray[Any]


@dataclass(frozen=True)
class Network:
    """A network to measure.

    Attributes:
        name: of its files.
        title: for people.
        factory: of the model without weights.
        weights: writes a checkpoint to a file.
        spec: preprocessing and classes.
        real: whether weights and images belong together, so that JPEG files and accuracy mean something.
    """

    name: str
    title: str
    factory: str
    weights: Callable[[Path], Path]
    spec: ModelSpec
    real: bool


def trained_lite0(_: Path) -> Path:
    """The shipped checkpoint."""
    return ZOO / "elpv_lite0.safetensors"


def random_b0(folder: Path) -> Path:
    """EfficientNet-B0 with seeded random weights, its batch norms fitted to noise."""
    import torch
    from safetensors.torch import save_file

    from splitboard.zoo.efficientnet import EfficientNetB0

    torch.manual_seed(SEED)
    model, noise = EfficientNetB0(), torch.randn(N_NORM, 3, 224, 224)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean over the batches
    model.train()
    with torch.no_grad():
        for start in range(0, N_NORM, 16):
            model(noise[start : start + 16])
    file = folder / "b0.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file)
    return file


_SPEC = read_spec(ZOO / "elpv.toml")
_RGB = replace(_SPEC, preprocessing=replace(_SPEC.preprocessing, source_channels=3), labels={})
LITE0 = Network("lite0", "EfficientNet-Lite0", "splitboard.zoo.elpv:lite0", trained_lite0, _SPEC, True)
B0 = Network("b0", "EfficientNet-B0", "splitboard.zoo.efficientnet:EfficientNetB0", random_b0, _RGB, False)


@dataclass(frozen=True)
class Measurement:
    """One table.

    Attributes:
        network: name of the network.
        precision: of the edge half, and so of what is sent.
        rounds: samples of every server time.
        clock: that was read.
    """

    network: str
    precision: str
    rounds: int
    clock: str = "thread"

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.network}-{self.precision}"


def images_of(network: Network) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Calibration images and images to measure on, ``[n, 300, 300, channels]``; grey ones repeated for RGB."""
    data, channels = elpv.load(), network.spec.preprocessing.source_channels
    calibration, test = data.calibration.images[:N_CALIBRATION], data.test.images[:N_IMAGES]
    return np.repeat(calibration, channels, axis=3), np.repeat(test, channels, axis=3)


def bundle_of(network: Network, precision: str) -> Path:
    """The bundle with every natural bottleneck, built where it is not there yet."""
    WORK.mkdir(parents=True, exist_ok=True)
    model_folder, target = WORK / f"{network.name}.model", WORK / f"{network.name}-{precision}.bundle"
    spec = network.spec.preprocessing
    if not model_folder.exists():
        shape = (1, spec.channels, spec.height, spec.width)
        request = ExportRequest(
            network.weights(WORK),
            name=network.name,
            factory=network.factory,
            inputs=(InputRequest(None, shape),),
            spec=network.spec,
            source_folder=ZOO,
        )
        export_model(request, model_folder)
    if not target.exists():
        model = load_model(model_folder)
        splits = list_splits(model)
        natural = [point.id for point in splits.proper if point.natural and point.block]
        recipe = Recipe(precision=precision, ranges="minmax" if precision == "int8" else "auto")
        request_ = BuildRequest(choose(model, splits, ",".join(natural)), this_machine(), recipe)
        samples = WORK / f"{network.name}-calibration.npz"
        save_samples(samples, images_of(network)[0], {})
        with (
            calibration_set(str(samples), spec.source_channels, N_CALIBRATION, WORK) as data,
            steps(f"build {target.name}") as show,
        ):
            build_bundle(model, splits, request_, data, target, show)
    return target


def jpeg_file(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """A grey image, ``[1, h, w, 1]``, as the edge runtime writes it."""
    file = io.BytesIO()
    Image.fromarray(pixels[0, :, :, 0]).save(file, "JPEG", quality=quality)
    return file.getvalue()


class Halves:
    """Both halves of every split, ready to be timed.

    Args:
        folder: the bundle.
        bundle: its manifest.
        engine: entered, with all splits.
        models: the server's, by served name.
        images: source images.
    """

    def __init__(
        self, folder: Path, bundle: Bundle, engine: LiteRtEngine, models: Mapping[str, Model], images: NDArray[np.uint8]
    ) -> None:
        self.folder, self.bundle, self._engine, self._images = folder, bundle, engine, images
        self._table = bundle.input_table()
        self._models = {split.id: models[bundle.served_name(split)] for split in bundle.splits if not split.is_local}
        self._feeds: dict[tuple[str, int], dict[str, Array]] = {}

    def edge_ms(self, split: Split, number: int) -> float:
        """Preprocessing and edge half of one image."""
        image = self._images[number % len(self._images)]
        start_ns = time.thread_time_ns()
        self._tensors(split, image)
        return (time.thread_time_ns() - start_ns) / 1e6

    def server_ms(self, split: Split, batch: int) -> float:
        """The server half of a batch; tensors of real images, made once."""
        model, key = self._models[split.id], (split.id, batch)
        if key not in self._feeds:
            made = [self._tensors(split, self._images[i % len(self._images)]) for i in range(batch)]
            self._feeds[key] = {
                spec.name: np.concatenate([one[spec.name] for one in made]) for spec in model.interface.inputs
            }
        start_ns = time.thread_time_ns()
        model.session.run(None, self._feeds[key])
        return (time.thread_time_ns() - start_ns) / 1e6

    def jpeg(self, number: int) -> tuple[float, float, int]:
        """Preprocessing and encoding in ms, decoding in ms, and bytes of one image as a JPEG file."""
        image = self._images[number % len(self._images)]
        start_ns = time.thread_time_ns()
        file = jpeg_file(prepare(image[None], self.bundle.preprocessing), JPEG_QUALITY)
        encoded_ns = time.thread_time_ns()
        decode_jpeg(memoryview(file), self.bundle.splits[0].tensors[0])
        return (encoded_ns - start_ns) / 1e6, (time.thread_time_ns() - encoded_ns) / 1e6, len(file)

    def _tensors(self, split: Split, image: NDArray[np.uint8]) -> dict[str, Array]:
        pixels = prepare(image[None], self.bundle.preprocessing)
        if split.is_remote:
            return {split.tensors[0].name: pixels}
        prepared = edge_image(pixels, self._table)
        return {**self._engine.infer(split.id, prepared), self.bundle.edge_input.name: prepared}


@contextlib.contextmanager
def loaded(network: Network, precision: str) -> Iterator[Halves]:
    """The halves of a network's bundle."""
    folder = bundle_of(network, precision)
    bundle = load_bundle(folder)
    models = load_models([folder], threads=1, max_batch=BATCHES[-1])
    with LiteRtEngine(folder, bundle, bundle.splits, threads=1, arena_bytes=1 << 40) as engine:
        yield Halves(folder, bundle, engine, models, images_of(network)[1])


def measure(network: Network, wanted: Measurement) -> dict[str, Any]:
    """Raw samples of every split, in ms, in interleaved rounds; the first round warms up and is dropped."""
    with loaded(network, wanted.precision) as halves:
        splits = halves.bundle.splits
        edge: dict[str, list[float]] = {split.id: [] for split in splits}
        server: dict[str, dict[int, list[float]]] = {split.id: {k: [] for k in BATCHES} for split in splits}
        jpegs: list[tuple[float, float, int]] = []
        for number in range(wanted.rounds + 1):
            started = time.monotonic()
            for split in rotated(splits, number):
                edge[split.id] += [halves.edge_ms(split, number + i) for i in range(EDGE_CALLS)]
                for batch in () if split.is_local else BATCHES:
                    server[split.id][batch].append(halves.server_ms(split, batch))
            jpegs += [halves.jpeg(EDGE_CALLS * number + i) for i in range(EDGE_CALLS if network.real else 0)]
            print(f"{wanted.name}: round {number} of {wanted.rounds} in {time.monotonic() - started:.1f} s", flush=True)
    rows = [
        {
            "split": split.id,
            "scope": split.scope,
            "values": sum(int(np.prod(tensor.shape)) for tensor in split.tensors),
            "payload_bytes": split.payload_bytes,
            "edge_macs": split.edge_macs,
            "server_macs": split.server_macs,
            "edge_ms": edge[split.id][EDGE_CALLS:],
            "server_ms": {str(k): samples[1:] for k, samples in server[split.id].items() if samples},
        }
        for split in splits
    ]
    if jpegs:
        rows.insert(1, _jpeg_row(rows[0], jpegs[EDGE_CALLS:]))
    return {"rows": rows, "stamp": asdict(take_stamp((SEED,)))}


def _jpeg_row(remote: Mapping[str, Any], jpegs: Sequence[tuple[float, float, int]]) -> dict[str, Any]:
    """Remote only by JPEG: the server decodes every image, then computes the same."""
    decode_ms = float(np.median([one[1] for one in jpegs]))
    return {
        **remote,
        "split": JPEG_SPLIT,
        "scope": f"remote, JPEG {JPEG_QUALITY}",
        "payload_bytes": round(float(np.mean([one[2] for one in jpegs]))),
        "edge_ms": [one[0] for one in jpegs],
        "server_ms": {
            batch: [ms + int(batch) * decode_ms for ms in samples] for batch, samples in remote["server_ms"].items()
        },
    }


def small(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The same with medians in place of the samples."""
    rows = [
        {
            **row,
            "edge_ms": round(float(np.median(row["edge_ms"])), 3),
            "server_ms": {batch: round(float(np.median(samples)), 3) for batch, samples in row["server_ms"].items()},
        }
        for row in measured["rows"]
    ]
    return {"rows": rows, "stamp": measured["stamp"]}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of one network: what every split costs."""
    header = ["split", "behind", "values", "bytes sent", "board ms", *(f"server ms, {k}" for k in BATCHES)]
    lines = [
        [
            row["split"],
            row["scope"],
            f"{row['values']:,}",
            f"{row['payload_bytes']:,}",
            f"{row['edge_ms']:.2f}",
            *(f"{row['server_ms'][str(k)]:.1f}" if row["server_ms"] else "" for k in BATCHES),
        ]
        for row in rows
    ]
    return table(header, lines, left=2)


def measured_tables(*, quick: bool) -> dict[str, Any]:
    """All tables by name, measured where they are not there yet.

    Args:
        quick: Lite0 in INT8 alone, a few rounds.
    """
    jobs = [(LITE0, "int8"), (B0, "int8"), (LITE0, "fp32")]
    store, tables = Store(WORK / "quick" if quick else WORK), {}
    for network, precision in jobs[:1] if quick else jobs:
        wanted = Measurement(network.name, precision, 3 if quick else ROUNDS)
        found = store.read(wanted)
        if found is None:
            found = measure(network, wanted)
            store.write(wanted, found)
        tables[wanted.name] = {"title": network.title, "precision": precision, "rounds": wanted.rounds, **small(found)}
    return tables


def main() -> None:
    """Measures what is missing, writes the medians, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="EfficientNet-Lite0 in INT8 alone, 3 rounds, written nowhere"
    )
    options = parser.parse_args()
    tables = measured_tables(quick=options.quick)
    if not options.quick:
        DATA.parent.mkdir(parents=True, exist_ok=True)
        DATA.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
    for name, one in tables.items():
        print(f"\n{name}, medians of {one['rounds']} rounds\n{markdown(one['rows'])}")


if __name__ == "__main__":
    main()
