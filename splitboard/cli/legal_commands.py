"""The verb that tells whether TensorRT takes a graph: its options, its help, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitboard.cli.options import Json
from splitboard.contract.errors import EXIT_GATE_FAILED, EXIT_PASS, UserError

if TYPE_CHECKING:
    from onnx import ModelProto

    from calib.qdq.legal import Legality, Refusal

_SHOWN = 3
"""Refusals of a kind that are printed."""


def check_onnx(
    graph: Annotated[Path, typer.Argument(metavar="GRAPH", help="An ONNX file, ours or yours.", show_default=False)],
    board: Annotated[str, typer.Option(help="Kind of Jetson: splitboard boards lists them.", show_default=False)],
    tensorrt: Annotated[
        str | None, typer.Option(help="Only this release, e.g. 10.3; without it, all of the kind's JetPacks.")
    ] = None,
    json: Json = False,
) -> int:
    """Whether TensorRT takes a graph on a kind of Jetson: all that is wrong with it, and what to change.

    Judged from the graph alone, no TensorRT is needed. Exit code 1 if something is wrong.

    Examples:
      splitboard check-onnx model.int8.onnx --board jetson-orin-nano

      splitboard check-onnx model.onnx --board jetson-xavier-nx --tensorrt 8.5
    """
    from boards.kinds import load_kind, systems_for
    from calib.qdq.legal import Legality, is_int8, not_judged, refusals
    from calib.qdq.parsers import named_release

    kind = load_kind(board)
    if "tensorrt" not in kind.runtime:
        raise UserError(f'"{kind.name}" runs no TensorRT', ["a Jetson: splitboard boards"])
    model = _load(graph)
    # INT8 that a kind refuses is for none of its systems, and the refusal for all of them.
    systems = systems_for(kind, "int8" if is_int8(model) else "fp16") or kind.systems
    releases = (
        (named_release(tensorrt),) if tensorrt is not None else tuple(one.runtimes["tensorrt"] for one in systems)
    )
    found = Legality(str(graph), kind.name, releases, refusals(model, kind, releases), not_judged(model))
    if json:
        from splitboard.report.results import result_json

        typer.echo(result_json(found))
    else:
        _say(found)
    return EXIT_GATE_FAILED if found.refusals else EXIT_PASS


def _load(path: Path) -> ModelProto:
    """The graph with all its data.

    Raises:
        UserError: there is none, or ONNX's own checker refuses it.
    """
    import onnx
    from google.protobuf.message import DecodeError

    _require_file(path)
    tries = ["copy the file again, it may be truncated, and the file of its weights beside it where it has one"]
    try:
        model = onnx.load(path, format="protobuf")  # else the suffix would choose the parser
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        raise UserError(f'"{path}" is not a readable ONNX file: {error}', tries) from error
    if not model.graph.node or not any(one.domain in ("", "ai.onnx") for one in model.opset_import):
        raise UserError(f'"{path}" holds no ONNX graph', tries)
    try:
        onnx.checker.check_model(path)  # of the file, since a model above 2 GB cannot be checked in memory
    except (onnx.checker.ValidationError, ValueError) as error:
        why = str(error).partition("==> Context")[0]
        tries = [
            "where an output has no shape: onnx.shape_inference.infer_shapes_path writes it",
            'where it is an operator of a plugin: give it a domain of its own, e.g. "trt.plugins"',
        ]
        raise UserError(f'"{path}" is not valid ONNX: {why}', tries) from error
    return model


def _require_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted([*path.glob("*.onnx"), *path.glob("edge/*.onnx")])
        tries = [str(inside[0])] if inside else ["one of its files; no ONNX file is in it, nor in its folder edge/"]
        raise UserError(f'"{path}" is a folder, not an ONNX file', tries)
    if not path.is_file():
        raise UserError(f'there is no file "{path}"', ["an ONNX file, e.g. of the folder edge/ of a bundle"])


def _say(found: Legality) -> None:
    for_whom = f"{found.board} (TensorRT {', '.join(found.tensorrt)})"
    typer.echo(f"Not legal for {for_whom}:" if found.refusals else f"Legal for {for_whom}.")
    for alike in _alike(found.refusals):
        rule = alike[0].rule
        for number, refusal in enumerate(alike[:_SHOWN]):
            typer.echo(f"{'' if number else rule:<14} {refusal}")
        if len(alike) > _SHOWN:
            typer.echo(f"{'':<14} and {len(alike) - _SHOWN} more (--json lists all)")
        typer.echo(f"{'':<14} Change: {alike[0].change}")
    if found.not_judged:
        count = len(found.not_judged)
        what = "operator of another domain" if count == 1 else "operators of other domains"
        typer.echo(f"Not judged: {count} {what}: {', '.join(found.not_judged)}")


def _alike(refusals: Sequence[Refusal]) -> list[list[Refusal]]:
    """Groups of one rule and one change, in the order in which each begins."""
    groups: dict[tuple[str, str], list[Refusal]] = {}
    for one in refusals:
        groups.setdefault((one.rule, one.change), []).append(one)
    return list(groups.values())


def register(app: typer.Typer) -> None:
    """Adds the verb to the application."""
    app.command("check-onnx")(check_onnx)
