"""The main job on this machine: a trained two-task network, cut, quantised, run over a socket, measured, shown."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from boards.bench.request import BenchRequest, Energy
from boards.kinds import this_machine
from calib.dataset import MOST_IMAGES, calibration_set
from export.choice import choose
from export.exported import ExportRequest
from export.exporter import export_model
from export.inputs import InputRequest
from export.model import load_model
from export.spec import read_spec
from export.splits import list_splits
from splitboard.cli.bench import bench, serving
from splitboard.cli.build import BuildRequest, build_bundle
from splitboard.cli.console import steps
from splitboard.contract.bundle import Bundle
from splitboard.contract.record import RunRecord
from splitboard.contract.samples import save_samples
from splitboard.report.page import LOOPBACK, write_report
from splitboard.report.results import Summary, summarise
from splitboard.zoo import elpv

CHECKPOINT = "elpv_lite0.safetensors"
SPLITS = "backbone.blocks.4,backbone.blocks.10,backbone.blocks.14"
"""Natural bottlenecks, each the last block of a stage, spread over the depth."""

MARGIN_POINTS = 1.0
"""Largest loss of accuracy of the deployed path against float, per task, that passes."""

COMMAND = "splitboard demo"


@dataclass(frozen=True)
class DemoRun:
    """What the demo made.

    Attributes:
        summary: all splits, measured.
        bundle: what was run.
        records: raw samples.
        report: the HTML page.
    """

    summary: Summary
    bundle: Bundle
    records: tuple[RunRecord, ...]
    report: Path


def run_demo(out: Path, *, energy: bool, limit: int | None) -> DemoRun:
    """Exports, builds, serves, measures and reports.

    Args:
        out: folder for everything that the demo makes.
        energy: also measure energy where there is a meter.
        limit: only the first images of the test part; ``None`` for all.
    """
    zoo = Path(str(files("splitboard.zoo")))
    data = elpv.load()
    out.mkdir(parents=True, exist_ok=True)
    calibration, test = out / "calibration.npz", out / "test.npz"
    save_samples(calibration, data.calibration.images, data.calibration.labels)
    save_samples(test, data.test.images, data.test.labels)
    spec = read_spec(zoo / "elpv.toml")
    shape = (1, spec.preprocessing.channels, spec.preprocessing.height, spec.preprocessing.width)
    with steps("splitboard") as show:
        show("export", 0, 1)
        source = ExportRequest(
            zoo / CHECKPOINT,
            name="elpv",
            factory="splitboard.zoo.elpv:lite0",
            inputs=(InputRequest(None, shape),),
            spec=spec,
            source_folder=zoo,
        )
        export_model(source, out / "model")
        show("export", 1, 1)
        model = load_model(out / "model")
        splits = list_splits(model)
        request = BuildRequest(choose(model, splits, SPLITS), this_machine(), licenses=[zoo / "elpv_lite0.md"])
        with calibration_set(str(calibration), spec.preprocessing.source_channels, MOST_IMAGES, out) as images:
            bundle = build_bundle(model, splits, request, images, out / "bundle", show)
    with serving(out / "bundle") as url:
        measured = BenchRequest(
            data=test,
            server=url,
            splits=["all"],
            out=out / "runs" / "demo.jsonl",
            energy=Energy() if energy else None,
            limit=limit,
        )
        records = bench(out / "bundle", bundle, measured)
    report = out / "report.html"
    write_report(report, records, bundle, COMMAND, LOOPBACK)
    return DemoRun(summarise(records, bundle), bundle, tuple(records), report)
