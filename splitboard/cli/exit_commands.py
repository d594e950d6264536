"""The verbs about early exits: exits, thresholds; their options, their help, and what they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitboard.cli.options import BundleFolder, Json, ModelFolder, Out


def exits(
    model: ModelFolder,
    at: Annotated[str, typer.Option(help="Comma-separated ids, module scopes or tensors (splitboard splits), or all.")],
    data: Annotated[Path, typer.Option(help="Training images with labels: an .npz (images, labels.<task>).")],
    out: Out,
    task: Annotated[str, typer.Option(help="Comma-separated tasks; without it all that the data labels.")] = "",
    json: Json = False,
) -> None:
    """Early exits for a trained model: at every place a linear head per task; the model itself is not changed.

    A head takes the mean over the positions of the split's tensor. It is fitted by logistic regression, whose penalty
    is cross-validated. A build puts it into every edge half that holds what it takes; thresholds then says when it may
    answer alone. A model with exits of its own declares them at export, in its spec: [exits] early = "defect".

    Never give images that calibrate the build, fit the thresholds, or judge the result.

    Examples:
      splitboard exits mine.model --task defect --at blocks.4 --data train.npz -o mine-exits.model

      splitboard exits mine.model --at blocks.4,blocks.10,s24 --data train.npz -o mine-exits.model
    """
    from export.model import MODEL_JSON, load_model
    from splitboard.cli.console import steps
    from splitboard.cli.exits import add_exits, places
    from splitboard.cli.tables import console
    from splitboard.contract.folder import check_folder
    from splitboard.contract.samples import load_samples
    from splitboard.report.exits_table import print_exits
    from splitboard.report.results import result_json

    check_folder(out, MODEL_JSON)
    loaded = load_model(model)
    training = load_samples(data, loaded.info.declared().source_channels)
    wanted = places(loaded, at, task, training.labels)
    with steps("splitboard exits") as show:
        made = add_exits(loaded, training, wanted, out, show)
    if json:
        typer.echo(result_json(made))
        return
    print_exits(console(), made.exits)
    typer.echo(f"Model: {out}")


def thresholds(
    bundle: BundleFolder,
    data: Annotated[Path, typer.Option(help="Labelled images that nothing has seen: .npz, or a folder per class.")],
    out: Out,
    drop: Annotated[float, typer.Option(help="Points of accuracy that each task may lose.")] = 1.0,
    accuracy: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=PERCENT", help="Accuracy that a task keeps, instead of --drop; once per task."),
    ] = None,
    measure: Annotated[str, typer.Option(help="How sure an exit is: max_softmax or entropy.")] = "max_softmax",
    confidence: Annotated[float, typer.Option(help="That no more is lost.")] = 0.95,
    json: Json = False,
) -> None:
    """When the exits of a bundle may answer alone: a threshold for every exit of every split, fitted on held-out data.

    As many answers as possible exit, while the upper confidence limit of what the combined answer loses against the
    split's own stays within --drop. An exit that cannot do that never answers. Exit code 2 if there are too few images
    for any rule: one point needs 299.

    With --accuracy a task may lose what the split has above it on these images. A split that is below it gets no
    threshold; where all are, the target is refused.

    Examples:
      splitboard thresholds mine.bundle --data held-out.npz -o exits.json

      splitboard thresholds mine.bundle --data held-out.npz --drop 0.5 --measure entropy -o exits.json

      splitboard thresholds mine.bundle --data held-out.npz --accuracy defect=88 -o exits.json
    """
    from splitboard.cli.console import steps
    from splitboard.cli.tables import console
    from splitboard.cli.thresholds import check_accuracies, check_target, conclude, fit_thresholds, plan
    from splitboard.contract.exits import BEGINNING
    from splitboard.contract.folder import check_file
    from splitboard.report.exits_table import print_rules
    from splitboard.report.results import result_json

    target, accuracies = check_target(measure, drop, confidence), check_accuracies(accuracy or [])
    check_file(out, BEGINNING)
    planned = plan(bundle, data, target, accuracies)
    with steps("splitboard thresholds") as show:
        made = fit_thresholds(planned, out, show)
    if json:
        typer.echo(result_json(made))
    else:
        print_rules(console(), made.rules)
        for name in made.not_fitted:
            typer.echo(f"not fitted, no labels: {name}")
        typer.echo(f"Rules: {out}")
    conclude(made)
