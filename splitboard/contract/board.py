"""A kind of board, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Tuple


@dataclass(frozen=True)
class BoardKind:
    """What is true of every board of a kind; the board on a desk is a station.

    Attributes:
        name: the file's name without suffix, e.g. ``rpi5``.
        title: for people.
        soc: system on chip, or the class of processor.
        cores: processor cores, 0 where the kind leaves it open.
        machine: what ``uname -m`` prints with a 64-bit system.
        format: of the edge artefact, ``tflite``.
        runtime: interpreters that run it, the preferred one first.
        precisions: that the kind runs, the preferred one first.
        refused: reason by precision that it does not.
        meter: where energy is read, or why it is not.
    """

    name: str
    title: str
    soc: str
    cores: int
    machine: str
    format: str
    runtime: Tuple[str, ...]
    precisions: Tuple[str, ...]
    refused: Dict[str, str]
    meter: str
