"""The verb that tells whether TensorRT takes a graph: its options, its help, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitboard.cli.options import Json
from splitboard.contract.errors import EXIT_GATE_FAILED, EXIT_PASS, UserError

if TYPE_CHECKING:
    from onnx import ModelProto

    from calib.qdq.legal import Legality


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
    from calib.qdq.legal import Legality, is_int8, refusals

    kind = load_kind(board)
    if "tensorrt" not in kind.runtime:
        raise UserError(f'"{kind.name}" runs no TensorRT', ["a Jetson: splitboard boards"])
    model = _load(graph)
    # INT8 that a kind refuses is for none of its systems, and the refusal for all of them.
    systems = systems_for(kind, "int8" if is_int8(model) else "fp16") or kind.systems
    releases = (tensorrt,) if tensorrt is not None else tuple(one.runtimes["tensorrt"] for one in systems)
    found = Legality(str(graph), kind.name, releases, refusals(model, kind, releases))
    if json:
        from splitboard.report.results import result_json

        typer.echo(result_json(found))
    else:
        _say(found)
    return EXIT_GATE_FAILED if found.refusals else EXIT_PASS


def _load(path: Path) -> ModelProto:
    """The graph with all its data."""
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise UserError(f'there is no file "{path}"', ["an ONNX file, e.g. of the folder edge/ of a bundle"])
    tries = ["copy the file again, it may be truncated, and the file of its weights beside it where it has one"]
    try:
        model = onnx.load(path)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        raise UserError(f'"{path}" is not a readable ONNX file: {error}', tries) from error
    if not model.graph.node or not any(one.domain in ("", "ai.onnx") for one in model.opset_import):
        raise UserError(f'"{path}" holds no ONNX graph', tries)
    return model


def _say(found: Legality) -> None:
    for_whom = f"{found.board} (TensorRT {', '.join(found.tensorrt)})"
    if not found.refusals:
        typer.echo(f"Legal for {for_whom}.")
        return
    typer.echo(f"Not legal for {for_whom}:")
    for refusal in found.refusals:
        typer.echo(f"{refusal.rule:<14} {refusal}\n{'':<14} Change: {refusal.change}")


def register(app: typer.Typer) -> None:
    """Adds the verb to the application."""
    app.command("check-onnx")(check_onnx)
