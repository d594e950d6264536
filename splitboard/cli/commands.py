"""Every verb of the command line: its options, its help, and what it prints. The work is done elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitboard.cli.exit_commands import exits, thresholds
from splitboard.cli.int8_commands import build, check, diagnose, finetune
from splitboard.cli.options import Json, ModelFolder, Out
from splitboard.cli.server_commands import serve
from splitboard.cli.train_commands import train
from splitboard.cli.triton import triton
from splitboard.contract.errors import GateFailed, UserError


def demo(
    out: Out = Path("demo-out"),
    energy: Annotated[bool, typer.Option(help="Also measure energy, where there is a meter (minutes longer).")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N test images.")] = None,
    json: Json = False,
) -> int:
    """The main job on this machine, on real images, from the shipped checkpoint to report.html.

    A network that was trained on solar cells is exported, cut at three places, quantised to INT8 and run: the edge half
    in one process, the server half in another, a socket in between. Exit code 1 if a task loses more than 1 point.

    Examples:
      splitboard demo

      splitboard demo --json --out /tmp/demo | jq .splits
    """
    from splitboard.contract.folder import check_folder

    check_folder(out, "model/model.json")  # before the imports, which take seconds

    from splitboard.cli.demo import MARGIN_POINTS, run_demo
    from splitboard.report.results import check_accuracy, demo_result, result_json

    run = run_demo(out, energy=energy, limit=limit)
    if json:
        typer.echo(result_json(demo_result(run.summary, str(run.report))))
    else:
        _print_table(run.summary)
        typer.echo(f"\nPage: {run.report}")
    failures = check_accuracy(run.summary.splits, MARGIN_POINTS)
    if failures:
        raise GateFailed(f"INT8 lost more than {MARGIN_POINTS:g} point: {'; '.join(failures)}")
    return 0


def export(
    source: Annotated[
        Path, typer.Argument(help="Weights (.safetensors, .pt, .pth), a .pt2 or an .onnx.", show_default=False)
    ],
    out: Out,
    model: Annotated[
        str | None, typer.Option(help="For weights: package.module:factory that returns the model without them.")
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(help="Model spec (TOML): preprocessing and class names. A build needs it.")
    ] = None,
    input: Annotated[  # noqa: A002 - its name
        list[str] | None, typer.Option(help="Shape of an input, batch first: 1x3x224x224 or ids=1x128:int64.")
    ] = None,
    tasks: Annotated[str, typer.Option(help="Names for the outputs: a,b for all in order, or output_0=a.")] = "",
    path: Annotated[Path, typer.Option(help="Folder that the factory's package lies in.")] = Path(),
    name: Annotated[str | None, typer.Option(help="Names the served models; default: the source's name.")] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Unpickle the source: only if you trust whoever made it.")
    ] = False,
    json: Json = False,
) -> None:
    """A trained model to a model folder: ONNX with fixed shapes, cleaned, checked against its source, outputs named.

    Your code runs in a process of its own with only --path on its import path. Nothing is unpickled but tensors.

    Examples:
      splitboard export net.pth --model nets.mine:make --spec mine.toml --input 1x3x224x224 -o mine.model

      splitboard export net.pt --model nets.two:make --input image=1x3x96x96 --input meta=1x6 --tasks kind,age -o m

      splitboard export program.pt2 --spec mine.toml -o mine.model

      splitboard export other.onnx --input images=1x3x320x320 --tasks output_0=boxes -o other.model

      splitboard export whole.pt --trust-pickle --path src --input 1x3x224x224 -o mine.model
    """
    from export.exported import ExportRequest
    from export.exporter import export_model
    from export.inputs import parse_inputs
    from export.model import MODEL_JSON
    from export.spec import read_spec
    from splitboard.cli.console import steps
    from splitboard.contract.folder import check_folder
    from splitboard.report.outputs import ExportOutput
    from splitboard.report.results import result_json

    request = ExportRequest(
        source=source,
        name=_served_name(name if name is not None else source.name.partition(".")[0]),
        factory=model,
        inputs=parse_inputs(input or []),
        spec=None if spec is None else read_spec(spec),
        tasks=tasks,
        source_folder=path,
        trust_pickle=trust_pickle,
    )
    check_folder(out, MODEL_JSON)
    with steps("splitboard") as show:
        show("export", 0, 1)
        info = export_model(request, out)
        show("export", 1, 1)
    if json:
        labels = {task.name: task.labels for task in info.tasks}
        early = {one.output: one.task for one in info.exits}
        typer.echo(result_json(ExportOutput(str(out), info.model_sha256, labels, info.parity, info.changes, early)))
        return
    for task in info.tasks:
        near = info.parity[task.name]
        typer.echo(
            f"{task.name}: {len(task.labels)} classes; off its source by at most {near.max_abs:.1e} "
            f"(relative {near.relative:.1e}, cosine {near.cosine:.7f})"
        )
    for one in info.exits:
        typer.echo(f"{one.output}: early exit of {one.task} behind {one.scope or 'no module'}")
    for change in info.changes:
        typer.echo(f"  {change}")
    typer.echo(f"Model: {out}")


def splits(
    model: ModelFolder,
    natural: Annotated[bool, typer.Option("--natural", help="Only natural bottlenecks.")] = False,
    blocks: Annotated[bool, typer.Option("--blocks", help="Only outputs of whole blocks of the model.")] = False,
    max_tensors: Annotated[int | None, typer.Option(min=1, help="Only cuts with at most so many tensors.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Prove every cut shown: server(edge(x)) = whole(x).")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Also write a page: payload and work along the depth.")] = None,
    json: Json = False,
) -> None:
    """The split points of a model: what crosses, its bytes, and the work and memory on each side.

    sNN sends one tensor, mNN several. A natural bottleneck carries strictly fewer values than the model's input. Ids
    stay the same whatever is shown. The two ends, remote only and local only, are neither natural nor blocks.

    Examples:
      splitboard splits mine.model --natural --blocks

      splitboard splits mine.model --max-tensors 1 --verify --picture splits.html
    """
    from export.model import load_model
    from export.splits import list_splits, with_errors
    from splitboard.cli.splits import prove, shown_points
    from splitboard.cli.tables import print_splits
    from splitboard.contract.folder import check_file
    from splitboard.report.outputs import SplitsOutput
    from splitboard.report.results import result_json

    if picture is not None:
        from splitboard.report.splits_page import BEGINNING

        check_file(picture, BEGINNING)
    loaded = load_model(model)
    found = list_splits(loaded)
    shown = shown_points(found, natural=natural, blocks=blocks, max_tensors=max_tensors)
    if verify:
        errors = prove(loaded, found, shown)
        shown = tuple(with_errors(point, errors) for point in shown)
    if picture is not None:
        from splitboard.report.splits_page import write_splits_page

        write_splits_page(picture, loaded.info.name, shown, found.remote)
    if json:
        typer.echo(result_json(SplitsOutput(loaded.info.model_sha256, shown)))
        return
    print_splits(shown, model)
    if picture is not None:
        typer.echo(f"\nPage: {picture}")


def report(
    runs: Annotated[Path, typer.Argument(help="Run records: a .jsonl or a folder of them.", show_default=False)],
    bundle: Annotated[
        Path | None, typer.Option(help="The bundle that was run, for class names and provenance.")
    ] = None,
    out: Out = Path("report.html"),
    json: Json = False,
) -> None:
    """One self-contained HTML page of run records.

    Example:
      splitboard report runs/today.jsonl --bundle mine.bundle -o report.html
    """
    from splitboard.contract.bundle import bundle_sha256, load_bundle
    from splitboard.contract.folder import check_file
    from splitboard.contract.record import read_records
    from splitboard.report.outputs import ReportOutput
    from splitboard.report.page import BEGINNING, write_report
    from splitboard.report.results import result_json, summarise

    check_file(out, BEGINNING)
    records = read_records(runs)
    loaded = None
    command = f"splitboard report {runs} -o {out}"
    if bundle is not None:
        loaded = load_bundle(bundle)
        command += f" --bundle {bundle}"
        if records[0].bundle_sha256 != bundle_sha256(bundle):
            raise UserError(
                f'"{bundle}" is not the bundle that was run: its sha256 is "{bundle_sha256(bundle)[:12]}...", '
                f"the records say {records[0].bundle_sha256[:12]}...",
                ["give the bundle that was benchmarked", "bench this bundle: splitboard bench"],
            )
    write_report(out, records, loaded, command)
    summary = summarise(records, loaded)
    if json:
        typer.echo(result_json(ReportOutput(str(out), summary.splits)))
    else:
        _print_table(summary)
        typer.echo(f"\nPage: {out}")


def edge(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="File to write, or folder to write splitboard-edge.pyz into.")
    ] = Path("splitboard-edge.pyz"),
    json: Json = False,
) -> None:
    """The edge runtime as one file for a board: run, bench, doctor and selfcheck on Python 3.8 or newer with numpy.

    Examples:
      splitboard edge -o splitboard-edge.pyz

      python3 splitboard-edge.pyz run --bundle mine.bundle --data photos/ --split auto --server http://10.0.0.5:8000
    """
    from boards.zipapp import BEGINNING, build_zipapp
    from splitboard.contract.bundle import file_sha256
    from splitboard.contract.folder import check_file
    from splitboard.report.outputs import EdgeOutput
    from splitboard.report.results import result_json

    if not out.is_dir():
        check_file(out, BEGINNING)
    path = build_zipapp(out)
    if json:
        typer.echo(result_json(EdgeOutput(str(path), path.stat().st_size, file_sha256(path))))
    else:
        typer.echo(f"Edge runtime: {path}, {path.stat().st_size / 1e6:.2f} MB")


def register(app: typer.Typer) -> None:
    """Adds every verb to the application, in the order of a user's work."""
    for command in (
        demo,
        export,
        splits,
        finetune,
        exits,
        build,
        check,
        diagnose,
        thresholds,
        serve,
        triton,
        edge,
        report,
        train,
    ):
        app.command()(command)


def _print_table(summary: object) -> None:
    from splitboard.cli.tables import console
    from splitboard.report.results import Summary
    from splitboard.report.table import print_results

    if isinstance(summary, Summary):
        print_results(console(), summary)


def _served_name(name: str) -> str:
    if not name.replace("_", "").replace("-", "").isalnum():
        raise UserError(f'"{name}" cannot name a served model', ["use letters, digits, - and _: --name mine"])
    return name
