"""JSON Schemas of everything that splitboard writes or prints: ``python -m splitboard.report.schemas docs/schema``."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from boards.bench.edge_alone import EdgeTimes
from boards.deploy.deploy import Deployed, Outlook
from boards.flash.card import FlashOutput
from boards.flash.jetson import JetsonPlan
from boards.flash.plan import Plan as FlashPlan
from calib.gate.baseline import Baseline
from calib.gate.judgement import Judgement
from calib.qdq.legal import Legality
from runtime_edge.tensorrt.profile import EngineProfile
from splitboard.contract.answers import AnsweredImage, AnsweredTask, RunStart, RunSums
from splitboard.contract.bundle import Bundle
from splitboard.contract.exits import ExitRules
from splitboard.contract.record import RunRecord
from splitboard.report.edge_alone import EdgeAloneOutput
from splitboard.report.outputs import (
    BenchOutput,
    BoardsOutput,
    BuildOutput,
    CheckOutput,
    DetectOutput,
    DiagnoseOutput,
    DoctorOutput,
    EdgeOutput,
    ExitsOutput,
    ExportOutput,
    FinetuneOutput,
    ReportOutput,
    ServeOutput,
    SplitsOutput,
    StationsOutput,
    ThresholdsOutput,
    TrainOutput,
    TritonOutput,
)
from splitboard.report.results import DemoResult

SCHEMAS: Mapping[str, type] = {
    "answer-image": AnsweredImage,
    "answer-start": RunStart,
    "answer-sums": RunSums,
    "answer-task": AnsweredTask,
    "bench-output": BenchOutput,
    "boards-output": BoardsOutput,
    "build-output": BuildOutput,
    "bundle": Bundle,
    "check-judgement": Judgement,
    "check-onnx-output": Legality,
    "check-output": CheckOutput,
    "gate-baseline": Baseline,
    "deploy-output": Deployed,
    "deploy-plan": Outlook,
    "detect-output": DetectOutput,
    "diagnose-output": DiagnoseOutput,
    "doctor-output": DoctorOutput,
    "demo-result": DemoResult,
    "edge-alone-output": EdgeAloneOutput,
    "edge-output": EdgeOutput,
    "edge-times": EdgeTimes,
    "engine-profile": EngineProfile,
    "exit-rules": ExitRules,
    "exits-output": ExitsOutput,
    "export-output": ExportOutput,
    "finetune-output": FinetuneOutput,
    "flash-jetson-plan": JetsonPlan,
    "flash-output": FlashOutput,
    "flash-plan": FlashPlan,
    "report-output": ReportOutput,
    "run-record": RunRecord,
    "serve-output": ServeOutput,
    "splits-output": SplitsOutput,
    "stations-output": StationsOutput,
    "thresholds-output": ThresholdsOutput,
    "train-output": TrainOutput,
    "triton-output": TritonOutput,
}
"""Every published type by the name of its file."""

_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)
"""One entry of a docstring's ``Attributes``, its continuation lines included."""


class _Generator(GenerateJsonSchema):
    """Refuses unknown keys, and takes descriptions from docstrings in place of titles made of the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 (the base class names it)
        return False

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        described = super().dataclass_schema(schema)
        text, _, attributes = inspect.cleandoc(schema["cls"].__doc__ or "").partition("\nAttributes:\n")
        described["description"] = _plain(text)
        described["additionalProperties"] = False
        for name, meaning in _ATTRIBUTE.findall(attributes):
            key = name if name in described["properties"] else name.rstrip("_")
            described["properties"][key] = {"description": _plain(meaning), **described["properties"][key]}
        return described


def json_schema(published: type) -> str:
    """The schema of a type's JSON as splitboard writes it, ending in a newline."""
    schema = TypeAdapter(published).json_schema(by_alias=True, schema_generator=_Generator, mode="serialization")
    return json.dumps({"$schema": _Generator.schema_dialect, **schema}, indent=2, sort_keys=True) + "\n"


def write_schemas(folder: Path) -> None:
    """Writes ``<name>.schema.json`` for every type of `SCHEMAS`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, published in SCHEMAS.items():
        (folder / f"{name}.schema.json").write_text(json_schema(published), encoding="utf-8")


def _plain(text: str) -> str:
    """One line without the marks of the documentation's markup."""
    return " ".join(text.split()).replace("`", "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the JSON Schemas of what splitboard writes and prints.")
    parser.add_argument("folder", type=Path, help="where to, e.g. docs/schema")
    write_schemas(parser.parse_args().folder)
