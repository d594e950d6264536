"""The verbs about INT8: build, check, diagnose, finetune; their options, their help, and what they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitboard.cli.options import AcceptHostKey, BundleFolder, Json, ModelFolder, Out, Stations, Wheelhouse
from splitboard.contract.errors import UserError


def build(
    model: ModelFolder,
    board: Annotated[str, typer.Option(help="Kind of board: splitboard boards.")],
    split: Annotated[str, typer.Option(help="Comma-separated ids or module scopes (splitboard splits), all, or auto.")],
    calib: Annotated[
        str, typer.Option(help="Calibration images: a folder, an .npz, or package.module:iterable. 100 are few.")
    ],
    out: Out,
    precision: Annotated[str, typer.Option(help="Of the edge half: int8, fp16, fp32; int16x8 is slow.")] = "int8",
    ranges: Annotated[
        str, typer.Option(help="minmax, p99.999, p99.99, mse, entropy; auto: the best on held-out images.")
    ] = "auto",
    equalise: Annotated[
        bool, typer.Option("--equalise", help="Scale channels of layers in a row to equal ranges first.")
    ] = False,
    keep_float: Annotated[
        str, typer.Option(help="Comma-separated modules or tensors whose layers stay in float: splitboard diagnose.")
    ] = "",
    calib_limit: Annotated[int, typer.Option(min=1, help="At most so many images, of every label its share.")] = 500,
    path: Annotated[Path, typer.Option(help="Folder that the iterable's package lies in.")] = Path(),
    local: Annotated[
        str, typer.Option(help="Comma-separated tasks whose heads run on the board at these splits.")
    ] = "",
    depthwise: Annotated[
        str | None, typer.Option(help="Of an INT8 half for a Jetson: float (fp16, the default) or int8.")
    ] = None,
    server_opset: Annotated[int | None, typer.Option(help="Opset of the server graphs: 17 for TensorRT 8.5.")] = None,
    json: Json = False,
) -> None:
    """Cuts, calibrates, quantises, verifies, and writes a bundle: what board and server need, and nothing else.

    --split auto takes a few cuts from the Pareto front of edge work against payload, and says why.

    Examples:
      splitboard build mine.model --board rpi5 --split s11,s24 --calib photos/ -o mine.bundle

      splitboard build mine.model --board rpi5 --split auto --calib photos/ -o mine.bundle

      splitboard build mine.model --board rpi5 --split s48 --local defect --calib photos/ -o mine.bundle

      splitboard build mine.model --board rpi5 --split s11 --keep-float features.0,head --calib data:images -o b

      splitboard build mine.model --board jetson-orin-nano --split auto --depthwise int8 --calib photos/ -o orin.bundle

      splitboard build mine.model --board jetson-nano --split auto --precision fp16 --calib photos/ -o nano.bundle
    """
    from boards.kinds import load_kind, require_precision
    from calib.dataset import calibration_set
    from calib.qdq.keep import DEPTHWISE
    from calib.recipe import Recipe, check_ranges
    from export.model import load_model
    from export.opset import check_opset
    from export.splits import list_splits
    from splitboard.cli.build import BuildRequest, build_bundle, build_output, check_buildable, check_depthwise
    from splitboard.cli.console import steps
    from splitboard.cli.splits import choose_for_build
    from splitboard.cli.tables import quantisation_lines
    from splitboard.contract.bundle import MANIFEST
    from splitboard.contract.folder import check_folder
    from splitboard.report.results import result_json

    kind = load_kind(board)
    require_precision(kind, precision)
    check_depthwise(kind, precision, depthwise)
    check_ranges(ranges)
    kept = tuple(name.strip() for name in keep_float.split(",") if name.strip())
    recipe = Recipe(precision, ranges, equalise=equalise, keep_float=kept)
    loaded = load_model(model)
    check_buildable(loaded)
    if server_opset is not None:
        check_opset(loaded.graph.model, server_opset)
    points = list_splits(loaded)
    chosen = choose_for_build(loaded, points, split, local, precision)
    check_folder(out, MANIFEST)
    channels = loaded.info.declared().source_channels
    with calibration_set(calib, channels, calib_limit, path) as data, steps("splitboard") as show:
        request = BuildRequest(chosen, kind, recipe, server_opset=server_opset, depthwise=depthwise or DEPTHWISE[0])
        bundle = build_bundle(loaded, points, request, data, out, show)
    made = build_output(out, bundle, chosen)
    if json:
        typer.echo(result_json(made))
        return
    for warning in made.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for split_id, reason in made.reasons.items():
        typer.echo(f"{split_id}: {reason}")
    off = max((error for errors in made.float_error.values() for error in errors.values()), default=0.0)
    typer.echo(f"cuts proved on calibration images: server(edge(x)) is off the whole by at most {off:.1e}")
    if local:
        typer.echo(f"on the board: the heads of {local}")
    for split_id, names in made.exits.items():
        typer.echo(f"early exits of {split_id}: {', '.join(names)}")
    for line in quantisation_lines(made):
        typer.echo(line)
    typer.echo(f"Bundle: {out}")


def finetune(
    model: ModelFolder,
    data: Annotated[Path, typer.Option(help="Training images: an .npz (images, labels.<task>), or a folder of them.")],
    calib: Annotated[Path, typer.Option(help="Calibration images, as for a build: a folder or an .npz.")],
    out: Out,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="At the start, as a share of a channel's weights.")] = 1e-3,
    batch: Annotated[int, typer.Option(min=1, help="Images per step.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the images.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="The number changes the last bits of the result.")] = 1,
    json: Json = False,
) -> None:
    """Fine-tunes a model for INT8 where quantising it costs accuracy; writes a model folder to build from.

    The weights are trained while they and the tensors between are rounded as the edge file will round them. Every task
    learns to stay with the float model; tasks with labels learn from these too. Never give images that you evaluate on.

    Examples:
      splitboard finetune mine.model --data train.npz --calib photos/ -o mine-int8.model

      splitboard finetune mine.model --data unlabelled/ --calib photos/ --epochs 5 --learning-rate 3e-4 -o tuned.model
    """
    from calib.finetune import FineTuning
    from export.model import MODEL_JSON, load_model
    from splitboard.cli.console import steps
    from splitboard.cli.finetune import finetune_model
    from splitboard.contract.folder import check_folder
    from splitboard.contract.samples import load_samples
    from splitboard.report.results import result_json

    settings = FineTuning(epochs, learning_rate, batch, seed, threads)
    check_folder(out, MODEL_JSON)
    loaded = load_model(model)
    channels = loaded.info.declared().source_channels
    training, calibration = load_samples(data, channels), load_samples(calib, channels)
    with steps("splitboard finetune") as show:
        made = finetune_model(loaded, training, calibration, settings, out, show)
    if json:
        typer.echo(result_json(made))
        return
    typer.echo(f"labels: {', '.join(made.labelled) or 'none, learnt from the float model alone'}")
    typer.echo(f"mean loss by epoch: {', '.join(f'{loss:.4f}' for loss in made.losses)}")
    typer.echo(f"Model: {out}")


def check(
    bundle: BundleFolder,
    data: Annotated[
        Path, typer.Option(help="Labelled images that the build has not seen: .npz, or a folder per class.")
    ],
    split: Annotated[str, typer.Option("--split", "--splits", help="Comma-separated ids, or all.")] = "all",
    gate: Annotated[Path | None, typer.Option(help="gate.toml: metric, margin and confidence per task.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Judge against this committed file, not against float.")] = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Judge against float, and make this run the baseline.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why the baseline is updated.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Also write a Markdown summary.")] = None,
    path: Annotated[Path, typer.Option(help="Folder that a metric of your own lies in.")] = Path(),
    board: Annotated[
        str, typer.Option(help="Whose outputs are judged: local, a station, user@host or emulated:KIND.")
    ] = "local",
    stations: Stations = None,
    accept_host_key: AcceptHostKey = False,
    wheelhouse: Wheelhouse = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per split and task, then one for the whole.")
    ] = False,
) -> None:
    """The accuracy gate: what the deployed artefact lost against its float model, per split and task.

    PASS if the upper confidence limit of the paired drop is within the margin, FAIL (exit code 1) if the lower one is
    beyond it, else INCONCLUSIVE (exit code 2). The worst task decides. Default: top-1, 1 point, 95 %.

    Examples:
      splitboard check mine.bundle --data test.npz

      splitboard check mine.bundle --data test.npz --gate gate.toml --junit gate.xml

      splitboard check mine.bundle --data test.npz --baseline gate.json --update-baseline --reason "new backbone"

      splitboard check mine.bundle --data test.npz --board pi1
    """
    from splitboard.cli.bench import Boards
    from splitboard.cli.check import CheckRequest, Files, conclude, judge, plan, run_here, run_on
    from splitboard.cli.console import steps
    from splitboard.cli.tables import console
    from splitboard.report.gate_table import print_judgements
    from splitboard.report.results import result_json

    if update_baseline != (reason is not None):
        given, missing = (
            ("--update-baseline", '--reason "why"') if update_baseline else ("--reason", "--update-baseline")
        )
        raise UserError(f'"{given}" is given without {missing}', [f"{given} {missing}"])
    files = Files(junit, summary)
    files.check()
    made = plan(CheckRequest(bundle, data, split, gate, baseline, reason, path))
    abilities = made.abilities_text()
    for line in abilities:
        typer.echo(line, err=json)
    with steps("splitboard") as show:
        places = Boards((board,), stations, accept_host_key, wheelhouse)
        deployed = run_here(made, show) if board == "local" else run_on(made, places, show)
        checked = judge(made, deployed, show)
    files.write(checked, abilities)
    if json:
        for one in (*checked.judgements, checked.output):
            typer.echo(result_json(one))
    else:
        print_judgements(console(), checked.judgements)
        for line in checked.output.reasons:
            typer.echo(line)
        for task in checked.output.not_judged:
            typer.echo(f"not judged, no labels: {task}")
        if board == "local" and any(path.endswith(".onnx") for path in made.bundle.edge_files):
            typer.echo("edge halves simulated by ONNX Runtime; the board's own: --board STATION")
        typer.echo(f"{checked.output.verdict} against {checked.output.against}")
    conclude(checked.output)


def diagnose(
    bundle: BundleFolder,
    data: Annotated[
        Path, typer.Option(help="Labelled images that the build has not seen: .npz, or a folder per class.")
    ],
    split: Annotated[str | None, typer.Option(help="Id of the split to look into; default: local only.")] = None,
    gate: Annotated[Path | None, typer.Option(help="gate.toml: metric and margin per task.")] = None,
    worst: Annotated[int, typer.Option(min=1, help="Layers to measure exactly, those that add most noise.")] = 10,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    model: Annotated[Path | None, typer.Option(help="Model folder, to name the layers' modules.")] = None,
    path: Annotated[Path, typer.Option(help="Folder that a metric of your own lies in.")] = Path(),
    out: Out = Path("diagnosis.html"),
    json: Json = False,
) -> None:
    """Which layer costs which task how much in INT8, and the shortest list to keep in float that meets the gate.

    Every layer's noise comes from one pass over a few images. The worst are then measured on all: each alone in INT8,
    and each alone in float. The gate is each task's loss on these images; whether it holds is for check to say.

    Examples:
      splitboard diagnose mine.bundle --data test.npz

      splitboard diagnose mine.bundle --data test.npz --split s11 --worst 20 --model mine.model -o s11.html
    """
    from splitboard.contract.folder import check_file
    from splitboard.report.diagnosis_page import BEGINNING

    check_file(out, BEGINNING)

    from splitboard.cli.console import steps
    from splitboard.cli.diagnose import DiagnoseRequest
    from splitboard.cli.diagnose import diagnose as run_diagnose
    from splitboard.cli.tables import console
    from splitboard.report.diagnosis_page import write_diagnosis_page
    from splitboard.report.diagnosis_table import print_diagnosis
    from splitboard.report.results import result_json

    request = DiagnoseRequest(bundle, data, out, split, gate, worst, limit, model, path)
    with steps("splitboard diagnose") as show:
        made = run_diagnose(request, show)
    write_diagnosis_page(out, made)
    if json:
        typer.echo(result_json(made))
        return
    print_diagnosis(console(), made)
    typer.echo(f"\nPage: {out}")
