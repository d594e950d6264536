"""The inputs that a model is exported for: what ``--input`` says, and which of them is the image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, helper

from splitboard.contract.bundle import TensorSpec
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import Preprocessing

DTYPES = ("float32", "int64", "int32", "uint8", "int8", "bool")
_LAYOUTS = {2: "NC", 3: "NCL", 4: "NCHW", 5: "NCDHW"}
_TRIES = [
    "write batch, channels, height, width: --input 1x3x224x224",
    "with several inputs name each: --input image=1x3x224x224 --input ids=1x128:int64",
]


@dataclass(frozen=True)
class InputRequest:
    """One ``--input``.

    Attributes:
        name: of the model's input; ``None`` for the only one.
        shape: batch first, which is 1.
        dtype: one of `DTYPES`; ``None`` for what the source says, float32 where it says nothing.
    """

    name: str | None
    shape: tuple[int, ...]
    dtype: str | None = None


def parse_inputs(texts: Sequence[str]) -> tuple[InputRequest, ...]:
    """Reads ``[name=]shape[:dtype]`` of every ``--input``.

    Raises:
        UserError: one is none, its batch is not 1, or several are not named, each once.
    """
    requests = tuple(map(_parse, texts))
    names = [one.name for one in requests]
    if len(requests) > 1:
        for text, name in zip(texts, names, strict=True):
            if name is None or names.count(name) > 1:
                raise UserError(f'--input "{text}" is one of several, which need a name each', _TRIES[1:])
    return requests


def _parse(text: str) -> InputRequest:
    name, equals, rest = text.rpartition("=")
    sizes, _, dtype = rest.partition(":")
    if re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", sizes, re.ASCII) is None or (equals and not name):
        raise UserError(f'--input "{text}" is not a shape', _TRIES)
    if dtype and dtype not in DTYPES:
        raise UserError(f'--input "{text}" has the unknown type "{dtype}"', [f"known: {', '.join(DTYPES)}"])
    shape = tuple(map(int, sizes.split("x")))
    check_batch(f'--input "{text}"', shape)
    return InputRequest(name or None, shape, dtype or None)


def check_batch(who: str, shape: Sequence[int]) -> None:
    """Refuses a batch of several.

    Raises:
        UserError: the first dimension is not 1.
    """
    if shape and shape[0] != 1:
        raise UserError(
            f"{who} has a batch of {shape[0]}, and a board runs one image at a time",
            ["put a batch of 1 first: --input 1x3x224x224"],
        )


def input_spec(name: str, shape: Sequence[int], dtype: str) -> TensorSpec:
    """An input as `model.json` has it; its layout is by its rank, as torch's modules have it."""
    return TensorSpec(name, tuple(shape), dtype, _LAYOUTS.get(len(shape), "N"))


def fix_inputs(model: ModelProto, inputs: Sequence[TensorSpec]) -> None:
    """Gives the graph's inputs these shapes, in place, and forgets all others, which are to follow from them.

    Args:
        model: without functions.
        inputs: in the order of the graph.
    """
    del model.graph.input[:]
    for one in inputs:
        dtype = helper.np_dtype_to_tensor_dtype(np.dtype(one.dtype))
        model.graph.input.append(helper.make_tensor_value_info(one.name, dtype, one.shape))
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def find_image(inputs: Sequence[TensorSpec], preprocessing: Preprocessing) -> str:
    """The input that the preprocessing makes.

    Raises:
        UserError: none has its shape, or several have.
    """
    wanted = (1, preprocessing.channels, preprocessing.height, preprocessing.width)
    shape = "x".join(map(str, wanted))
    found = [one.name for one in inputs if one.shape == wanted and one.dtype == "float32"]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f'two inputs are what [preprocessing] makes ({shape}): "{found[0]}" and "{found[1]}"',
            ["leave --spec out: splits can be listed without", "give one of them another shape"],
        )
    shapes = ", ".join(f'"{"x".join(map(str, one.shape))}"' for one in inputs)
    raise UserError(
        f"no input of the model is what [preprocessing] makes, a float32 of {shape}: {shapes}",
        [f"--input {shape}", "change height, width or mean in the model spec"],
    )
