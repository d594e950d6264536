"""The structured random pattern: which inputs a layer's outputs have weights for (arXiv 1812.01164, section II).

A junction of ``inputs`` to ``outputs`` gives every input the same out-degree and every output the same in-degree, so
``weights = inputs * out_degree = outputs * in_degree`` and its density is ``k / gcd(inputs, outputs)``.

The pattern is drawn by the global Curveball walk (Carstens et al., "Parallel and I/O-efficient randomisation of massive
networks using global Curveball trades", arXiv 1804.08487): outputs are paired at random, and each pair deals the inputs
that only one of them has anew. No trade changes a degree, so there is nothing to repair at any density, and the walk's
limit is the uniform distribution over all regular patterns.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import gcd

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.errors import UserError

_ROUNDS = 12
"""Each round trades every output once. Curveball's own experiments see no change after a handful of rounds."""


@dataclass(frozen=True)
class Junction:
    """The connections between a layer's inputs and outputs, by number.

    Attributes:
        inputs: neurons, or channels of a convolution.
        outputs: the same on the other side.
        out_degree: outputs that each input has a weight for.

    Raises:
        UserError: no in-degree goes with the out-degree; the nearest out-degrees that do are named.
    """

    inputs: int
    outputs: int
    out_degree: int

    def __post_init__(self) -> None:
        step = self.outputs // gcd(self.inputs, self.outputs)
        if 0 < self.out_degree <= self.outputs and self.out_degree % step == 0:
            return
        near = sorted({min(max(self.out_degree // step + i, 1) * step, self.outputs) for i in (0, 1)})
        raise UserError(
            f'out-degree "{self.out_degree}" of a junction of {self.inputs} to {self.outputs} is not admissible: '
            f"every output needs the same whole number of inputs",
            [f"out-degree {' or '.join(map(str, near))}"]
            + ([f"any multiple of {step} up to {self.outputs}"] if 2 * step < self.outputs else []),
        )

    @property
    def in_degree(self) -> int:
        """Inputs that each output has a weight for."""
        return self.inputs * self.out_degree // self.outputs

    @property
    def weights(self) -> int:
        """How many connections exist."""
        return self.inputs * self.out_degree

    @property
    def density(self) -> Fraction:
        """Share of the connections that exist."""
        return Fraction(self.out_degree, self.outputs)


def junction(inputs: int, outputs: int, density: Fraction) -> Junction:
    """The junction of a density.

    Raises:
        UserError: no degrees give it; the nearest densities that some do give are named.
    """
    common = gcd(inputs, outputs)
    if not 0 < density <= 1 or (density * common).denominator != 1:
        raise UserError(
            f'density "{density}" of a junction of {inputs} to {outputs} is not admissible: it must be k/{common}',
            [f"density {text}" for text in nearest(density, common)],
        )
    return Junction(inputs, outputs, int(density * outputs))


def nearest(density: Fraction, common: int) -> list[str]:
    """The admissible densities ``k / common`` on both sides of one that is not, as text."""
    below = int(density * common)
    found = dict.fromkeys(min(max(k, 1), common) for k in (below, below + 1))
    return [str(Fraction(k, common)) for k in found]


def draw(wanted: Junction, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draws a pattern, every one as likely as any other as far as the walk is long enough to tell.

    Returns:
        For each output the inputs that it has weights for, ascending: ``[outputs, in_degree]``.
    """
    start = np.arange(wanted.weights) % wanted.inputs  # in_degree inputs in a row for each output, round and round
    relabelled = generator.permutation(wanted.inputs)[start].reshape(wanted.outputs, wanted.in_degree)
    exists = np.zeros((wanted.outputs, wanted.inputs), np.bool_)
    np.put_along_axis(exists, relabelled, True, axis=1)
    # Either side may trade; the one with fewer members has fewer and longer trades, which numpy is fast at.
    rows = exists if wanted.outputs <= wanted.inputs else np.ascontiguousarray(exists.T)
    for _ in range(_ROUNDS):
        _trade(rows, generator)
    exists = rows if wanted.outputs <= wanted.inputs else rows.T
    return np.nonzero(exists)[1].reshape(wanted.outputs, wanted.in_degree)


def _trade(rows: NDArray[np.bool_], generator: np.random.Generator) -> None:
    """Pairs all rows at random; each pair deals anew what only one of them has, each keeping its number. In place."""
    order = generator.permutation(len(rows))
    for a, b in zip(order[0::2], order[1::2], strict=False):
        only_one = np.flatnonzero(rows[a] != rows[b])
        dealt = generator.permutation(only_one)
        half = len(dealt) // 2  # equal degrees: as many only in one as only in the other
        rows[a, dealt[:half]], rows[b, dealt[:half]] = True, False
        rows[a, dealt[half:]], rows[b, dealt[half:]] = False, True
