"""The verb train: its options, its help, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitboard.cli.options import Json


def train(
    dataset: Annotated[str, typer.Argument(help="elpv, shapes, shapes3d, faces or medic.", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="The data set's file or folder; elpv and shapes need none.")] = None,
    backbone: Annotated[
        str,
        typer.Option(
            help="vgg16, vgg16-bn, resnet18, mobilenet-v3-small, efficientnet-b0, efficientnet-lite0, timm:NAME or "
            "torchvision:NAME; default: as the data set's recipe has it."
        ),
    ] = "",
    size: Annotated[int | None, typer.Option(min=8, help="Rows and columns of the images.")] = None,
    tasks: Annotated[str, typer.Option(help="Comma-separated; one task alone is single-task learning.")] = "",
    head: Annotated[str, typer.Option(help="pooled, or flat: the paper's, for one size of images.")] = "pooled",
    hidden: Annotated[
        int | None, typer.Option(min=1, help="Width of the heads; default: pooled 128, flat 256.")
    ] = None,
    exit_: Annotated[
        list[str] | None,
        typer.Option("--exit", help="Early exit behind a module of the backbone: layer2=0.3 (weight)."),
    ] = None,
    density: Annotated[
        str, typer.Option(help="Share of the weights that exist: backbone=1/8,heads=1/16,layer1=1/4.")
    ] = "",
    pattern: Annotated[str, typer.Option(help="Which weights exist: grouped (runs faster) or scattered.")] = "",
    weighting: Annotated[str, typer.Option(help="Of the tasks' losses: sum, or uncertainty (learnt).")] = "",
    epochs: Annotated[int | None, typer.Option(min=1, help="All at one size.")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Images per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the one-cycle schedule.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed and threads give the same weights.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the arithmetic on the CPU.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Published weights of the backbone (.safetensors, torchvision's names).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    log: Annotated[Path | None, typer.Option(help="Folder for TensorBoard.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where to write; default: named after data set and backbone.")
    ] = None,
    json: Json = False,
) -> None:
    """Trains a multi-task network with a fixed seed and prints accuracy per task and exit on the held-out part.

    Beside the weights it writes the model spec and the Python file that splitboard export needs. Without options it is
    the data set's recipe: for elpv with efficientnet-lite0 the one of the shipped weights, which takes half an hour or
    more. Ctrl-C keeps the state.

    Examples:
      splitboard train elpv --backbone resnet18

      splitboard train shapes --exit layer2=0.3 --density backbone=1/8,heads=1/8 -o small.safetensors

      splitboard train faces --data FACES --weights resnet18.safetensors --weighting uncertainty --log runs
    """
    from splitboard.cli.tables import print_trained
    from splitboard.cli.train import train_network
    from splitboard.cli.train_options import TrainRequest
    from splitboard.report.results import result_json

    request = TrainRequest(
        dataset=dataset,
        data=data,
        backbone=backbone,
        size=size,
        tasks=tasks,
        head=head,
        hidden=hidden,
        exits=tuple(exit_ or ()),
        density=density,
        pattern=pattern,
        weighting=weighting,
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
        threads=threads,
        weights=weights,
    )
    made = train_network(request, out, resume=resume, log=log)
    if json:
        typer.echo(result_json(made))
    else:
        print_trained(made)
        typer.echo(f"Next: {made.export}")
