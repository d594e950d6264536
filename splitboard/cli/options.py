"""Options that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object (docs/schema) and nothing else on stdout.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Where to write.")]
BundleFolder = Annotated[Path, typer.Argument(help="Bundle folder, from splitboard build.", show_default=False)]
ModelFolder = Annotated[Path, typer.Argument(help="Model folder, from splitboard export.", show_default=False)]
Data = Annotated[Path, typer.Option(help="Labelled images: an .npz (images, labels.<task>), or a folder of images.")]
Stations = Annotated[
    Path | None,
    typer.Option(
        "--stations",
        help="Your boards; default: $SPLITBOARD_STATIONS, stations.toml, ~/.config/splitboard/stations.toml.",
    ),
]
AcceptHostKey = Annotated[
    bool, typer.Option("--accept-host-key", help="On first contact, take the board's host key without asking.")
]
Wheelhouse = Annotated[Path | None, typer.Option(help="Folder of wheels for the board; without it they are fetched.")]
