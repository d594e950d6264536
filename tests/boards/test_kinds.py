"""Kinds of board: every file loads, and nothing unknown is accepted."""

from __future__ import annotations

import platform

import pytest

from boards.kinds import kind_names, load_kind, require_precision, this_machine
from splitboard.contract.errors import UserError


def test_the_kinds_are_these() -> None:
    assert kind_names() == ["jetson-orin-nano", "linux-arm64", "linux-x86-64", "rpi4", "rpi5"]


@pytest.mark.parametrize("name", kind_names())
def test_every_kind_loads_and_runs_what_it_says(name: str) -> None:
    kind = load_kind(name)
    assert kind.name == name
    assert kind.format == ("onnx" if "tensorrt" in kind.runtime else "tflite")
    for precision in kind.precisions:
        require_precision(kind, precision)
    assert not set(kind.precisions) & kind.refused.keys()


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        load_kind("rpi55")
    assert error.value.message == 'unknown board "rpi55"'
    assert error.value.tries[0] == '"rpi5" is the nearest'


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UserError, match='unknown precision "int4"'):
        require_precision(load_kind("rpi5"), "int4")


def test_this_machine_is_of_a_generic_kind() -> None:
    assert this_machine().machine == platform.machine()
