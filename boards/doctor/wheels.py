"""Which interpreter of TFLite files a board can have: what the wheels on PyPI ask for."""

from __future__ import annotations

from dataclasses import dataclass

Version = tuple[int, ...]


@dataclass(frozen=True)
class Wheel:
    """What the wheels of one version ask for.

    Attributes:
        name: of the package.
        version: of it.
        pythons: the oldest and the newest Python.
        glibc: the oldest, by machine; there is none for others. Machines are those of wheels: a 32-bit system on a
            64-bit processor is ``armv7l``.
        numpy_below: the first numpy that it does not work with.
    """

    name: str
    version: str
    pythons: tuple[Version, Version]
    glibc: dict[str, Version]
    numpy_below: Version | None = None


# The tags of the files on PyPI.
WHEELS = (
    Wheel("ai-edge-litert", "2.3.0", ((3, 10), (3, 14)), {"aarch64": (2, 27), "x86_64": (2, 27)}),
    Wheel(
        "tflite-runtime",
        "2.14.0",
        ((3, 9), (3, 11)),
        {"aarch64": (2, 34), "armv7l": (2, 34), "x86_64": (2, 17)},
        numpy_below=(2,),  # its own metadata allows numpy 2, with which Interpreter(...) ends in a SystemError
    ),
)
"""The preferred one first."""


def number(text: str) -> Version:
    """``3.11.2`` as numbers, as far as they go: ``1.26.4rc1`` is ``(1, 26)``."""
    found: list[int] = []
    for part in text.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def text(version: Version) -> str:
    """Numbers as one writes them."""
    return ".".join(map(str, version))


def misfits(wheel: Wheel, machine: str, python: Version, glibc: Version | None) -> list[str]:
    """Why a wheel cannot be installed; empty if it can.

    Args:
        wheel: the wheel.
        machine: of wheels, e.g. ``armv7l``.
        python: of the interpreter.
        glibc: of the system; ``None`` where it does not say.
    """
    if machine not in wheel.glibc:
        return [f"has no wheel for {machine}"]
    found = []
    oldest, newest = wheel.pythons
    if not oldest <= python[:2] <= newest:
        found.append(f"needs Python {text(oldest)} to {text(newest)}")
    if glibc is not None and glibc < wheel.glibc[machine]:
        found.append(f"needs glibc {text(wheel.glibc[machine])}")
    return found


def below(version: Version, constraint: str) -> bool:
    """Whether a version meets a constraint of a kind of board, which always reads ``<N``.

    Raises:
        ValueError: the constraint is another one.
    """
    if not constraint.startswith("<") or not number(constraint[1:]):
        raise ValueError(f'"{constraint}" is not of the form <N')
    return version < number(constraint[1:])
