"""The published schemas are up to date, fit real objects and refuse others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from splitboard.contract.bundle import Bundle
from splitboard.contract.decode import to_json
from splitboard.contract.record import RunRecord
from splitboard.report.results import demo_result, result_json, summarise
from splitboard.report.schemas import SCHEMAS, json_schema, write_schemas

FOLDER = Path(__file__).parents[2] / "docs" / "schema"


def _validator(name: str) -> Draft202012Validator:
    schema: dict[str, Any] = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("name", SCHEMAS)
def test_committed_schema_is_up_to_date(name: str) -> None:
    committed = (FOLDER / f"{name}.schema.json").read_text(encoding="utf-8")
    assert committed == json_schema(SCHEMAS[name]), "run: python -m splitboard.report.schemas docs/schema"


def test_one_file_per_type(tmp_path: Path) -> None:
    write_schemas(tmp_path)
    assert {file.name for file in FOLDER.iterdir()} == {file.name for file in tmp_path.iterdir()}


def test_every_key_is_described_and_no_other_allowed() -> None:
    for name, published in SCHEMAS.items():
        schema = json.loads(json_schema(published))
        for part in (schema, *schema.get("$defs", {}).values()):
            assert part["additionalProperties"] is False, name
            for key, value in part["properties"].items():
                assert value.get("description"), f"{name}: {part['title']}.{key}"


def test_real_objects_validate(records: list[RunRecord], bundle: Bundle) -> None:
    for record in records:
        _validator("run-record").validate(json.loads(to_json(record)))
    _validator("bundle").validate(json.loads(to_json(bundle)))
    result = demo_result(summarise(records, bundle), "report.html")
    _validator("demo-result").validate(json.loads(result_json(result)))
    bare = demo_result(summarise(records[1:], None), "report.html")
    _validator("demo-result").validate(json.loads(result_json(bare)))


def test_other_objects_do_not(records: list[RunRecord], bundle: Bundle) -> None:
    printed = json.loads(result_json(demo_result(summarise(records, bundle), "report.html")))
    with pytest.raises(ValidationError):
        _validator("demo-result").validate({**printed, "more": 1})
    printed["local"]["accuracy"]["defect"]["int8"] = 94.0  # percent in place of a share
    with pytest.raises(ValidationError):
        _validator("demo-result").validate(printed)
