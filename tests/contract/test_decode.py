"""Untrusted JSON: exact types or a refusal that names the place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitboard.contract.bundle import Bundle, load_bundle
from splitboard.contract.decode import decode, to_json
from splitboard.contract.errors import UserError


def test_a_manifest_survives_the_round_trip(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    assert decode(Bundle, json.loads(to_json(bundle)), "manifest") == bundle


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(splitz=[]), 'unknown key "splitz"'),
        (lambda d: d.pop("splits"), 'the key "splits" is missing'),
        (lambda d: d.update(name=3), 'name: expected str, found "3"'),
        (lambda d: d["splits"][1].update(natural="yes"), "splits[1]: natural: expected bool, found \"'yes'\""),
        (lambda d: d["splits"][0]["tensors"][0].update(shape=[1, True]), "shape[1]: expected int"),
        (lambda d: d.update(artifacts={}), 'artifacts: expected a list, found "{}"'),
        (lambda d: d.update(golden_tolerance=[1.0]), 'golden_tolerance: expected a table, found "[1.0]"'),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(tiny_bundle: Path, change: Any, said: str) -> None:
    data = json.loads(to_json(load_bundle(tiny_bundle)))
    change(data)
    with pytest.raises(UserError) as error:
        decode(Bundle, data, "manifest.json")
    assert error.value.message.startswith("manifest.json: ")
    assert said in error.value.message


def test_the_nearest_known_key_is_said(tiny_bundle: Path) -> None:
    data = {**dataclasses.asdict(load_bundle(tiny_bundle)), "artefacts": []}
    with pytest.raises(UserError) as error:
        decode(Bundle, data, "manifest.json")
    assert error.value.tries == ('"artifacts" is the nearest known key',)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=12,
)


@given(_JSON, st.sampled_from(sorted(field.name for field in dataclasses.fields(Bundle))))
def test_garbage_is_only_ever_refused(tiny_bundle: Path, garbage: object, key: str) -> None:
    data = json.loads((tiny_bundle / "manifest.json").read_text())
    original = data[key]
    data[key] = garbage
    try:
        decode(Bundle, data, "manifest.json")
    except UserError:
        return
    assert type(garbage) is type(original) or isinstance(garbage, (list, dict))
