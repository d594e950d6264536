"""The shipped checkpoint on its way to the board: where to compute it, and which of its heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import link
from commands import splitboard
from deployed import BOARD, part_file
from figures import table
from jobs import Store, work_off

from splitboard.contract.bundle import load_bundle
from splitboard.zoo.data import elpv

PLACED_AT = "flatten"
"""Behind the pooling, where a head on the board has its input."""

ZOO = Path(str(files("splitboard.zoo")))


@dataclass(frozen=True)
class Shipped:
    """A bundle of it: EfficientNet-Lite0 with pooled heads at 224 pixels.

    Attributes:
        cuts: modules that it is cut behind.
        local: task whose head is on the board, if any.
    """

    cuts: tuple[str, ...]
    local: str | None = None

    @property
    def name(self) -> str:
        """Of its files."""
        return "elpv-lite0" if self.local is None else f"elpv-lite0.local.{self.local}"


WHOLE = Shipped(("backbone.blocks.4", "backbone.blocks.10", "backbone.blocks.14", "backbone.final", PLACED_AT))
PLACED = (Shipped((PLACED_AT,), "defect"), Shipped((PLACED_AT,), "cell_type"))


def bundles(store: Store) -> dict[Shipped, Path]:
    """All of them, built where they are not there yet."""
    model = store.path("elpv-lite0.model")
    if not model.exists():
        factory = ("--model", "splitboard.zoo.elpv:lite0", "--spec", ZOO / "elpv.toml", "--input", "1x3x224x224")
        splitboard("export", ZOO / "elpv_lite0.safetensors", *factory, "-o", model)
    part_file(elpv.load().validation, _calibration(store))
    asked = [WHOLE, *PLACED]
    work_off(asked, store, _build)
    return {one: _folder(one, store) for one in asked}


def _build(shipped: Shipped, store: Store) -> Mapping[str, Any]:
    local = () if shipped.local is None else ("--local", shipped.local)
    how = ("--board", BOARD, "--split", ",".join(shipped.cuts), "--calib", _calibration(store), *local)
    told = splitboard("build", store.path("elpv-lite0.model"), *how, "-o", _folder(shipped, store))
    return {"edge_bytes": told["edge_bytes"]}


def _calibration(store: Store) -> Path:
    return store.path("elpv.all-calibration.npz")


def _folder(shipped: Shipped, store: Store) -> Path:
    return store.path(f"{shipped.name}.bundle")


@dataclass(frozen=True)
class Measuring:
    """What is measured of the bundles, and kept.

    Attributes:
        links: that the places are compared over.
        rounds: of all that is timed.
        images: of each round.
        n_judged: images that are answered by all.
    """

    links: tuple[link.Link, ...]
    rounds: int
    images: int
    n_judged: int

    name = "elpv-lite0.cells"


@dataclass(frozen=True)
class Measured:
    """All of it.

    Attributes:
        places: local only, remote only and split.
        placements: of the heads.
        judged: both, on many images.
    """

    places: list[link.Cell]
    placements: list[link.Cell]
    judged: list[link.Cell]


def measured(asked: Measuring, store: Store) -> Measured:
    """Measures what is not measured yet."""
    kept = store.read(asked)
    if kept is None:
        made = bundles(store)
        test = part_file(elpv.load().test, store.path("elpv.test.npz"))
        found = Measured(
            _places(made[WHOLE], test, asked.links, asked.rounds, asked.images),
            _placements(made, test, asked.rounds, asked.images),
            _judged(made, test, asked.n_judged),
        )
        kept = {field.name: [cell.to_json() for cell in getattr(found, field.name)] for field in fields(Measured)}
        store.write(asked, kept)
    return Measured(**{name: [*map(link.Cell.from_json, cells)] for name, cells in kept.items()})


def _places(bundle: Path, data: Path, links: Sequence[link.Link], rounds: int, images: int) -> list[link.Cell]:
    """Local only, remote only and split."""
    return link.measure(bundle, data, links, link.variants_of(load_bundle(bundle)), rounds, images)


def _judged(made: Mapping[Shipped, Path], data: Path, images: int) -> list[link.Cell]:
    """All that is timed, on as many images."""
    found = link.judge(made[WHOLE], data, link.variants_of(load_bundle(made[WHOLE])), images)
    for shipped in PLACED:
        found += link.judge(made[shipped], data, [_placement(shipped, made[shipped])], images)
    return found


def _placements(made: Mapping[Shipped, Path], data: Path, rounds: int, images: int) -> list[link.Cell]:
    """Behind the pooling at 10 Mbit/s: the server answers both tasks, or one task's head is on the board."""
    return [
        cell
        for shipped, folder in made.items()
        for cell in link.measure(folder, data, link.LINKS[1:2], [_placement(shipped, folder)], rounds, images)
    ]


def _placement(shipped: Shipped, folder: Path) -> link.Variant:
    (split,) = (one for one in load_bundle(folder).splits if one.scope == PLACED_AT)
    name = "both on the server" if shipped.local is None else f"{shipped.local} on the board"
    return link.Variant(name, split.id)


def placement_table(cells: Sequence[link.Cell]) -> str:
    """When and by whom each task is answered."""
    tasks = list(cells[0].by)
    rows = [
        [
            cell.variant.name,
            f"{cell.sent_bytes:,.0f}",
            f"{cell.edge_ms:.1f}",
            *(f"{cell.after_ms(task):.1f}, {next(iter(cell.by[task]))}" for task in tasks),
        ]
        for cell in cells
    ]
    return table(["heads", "bytes sent", "board, ms", *(f"{task} answered after, ms" for task in tasks)], rows)
