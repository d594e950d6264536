"""The shortest list of layers to keep in float that meets the gate."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from calib.diagnose.finding import LayerNoise, TaskLoss

Losses = tuple[TaskLoss, ...]

Measure = Callable[[frozenset[str]], Losses]
"""Measures the bundle's edge half with some more layers in float."""

_STEPS_TO_BLAME = 0.5
"""Share of what a layer adds that its tensor's own steps explain, from which on they are to blame."""


def met(losses: Losses) -> bool:
    """Whether the gate is met on these images."""
    return all(one.met for one in losses)


def badness(losses: Losses) -> tuple[float, float]:
    """To compare lists with: how far the worst task is beyond its margin, then the worst task's noise.

    Units differ between metrics, so the excess is in margins, or in the unit where the margin is 0.
    """
    excess = (max(0.0, one.loss - one.margin) / (one.margin or 1.0) if not one.met else 0.0 for one in losses)
    return max(excess), max(one.noise for one in losses)


def cure(noise: LayerNoise, takers: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """What has to be in float for the noise that a layer adds to go.

    Weights are the layer's own. The steps of its tensor are there as long as anybody takes it as INT8: where they are
    to blame, whoever takes it has to be in float as well.
    """
    if noise.steps is not None and noise.steps >= _STEPS_TO_BLAME * noise.added > 0:
        return frozenset({noise.layer, *takers[noise.layer]})
    return frozenset({noise.layer})


class Search:
    """Looks for the list.

    Lists of one layer come first, then of two, each completely; so those are proved to be the shortest among the layers
    looked at. A longer one is grown in the order of what the layers gain alone, then pruned until every member is
    needed.

    Args:
        candidates: single layers.
        cures: what takes each candidate's noise away, in the same order; mostly the candidate alone.
        measure: of a list.
    """

    def __init__(self, candidates: Sequence[str], cures: Sequence[frozenset[str]], measure: Measure) -> None:
        self._candidates, self._cures = tuple(candidates), tuple(cures)
        self._measure = measure
        self._known: dict[frozenset[str], Losses] = {}

    @property
    def tried(self) -> int:
        """Lists measured so far."""
        return len(self._known)

    def losses(self, layers: frozenset[str]) -> Losses:
        """Of a list, measured once."""
        if layers not in self._known:
            self._known[layers] = self._measure(layers)
        return self._known[layers]

    def find(self) -> tuple[frozenset[str], bool]:
        """The list, and whether every shorter one was tried; the best one seen where none meets the gate."""
        everything = frozenset().union(*self._cures)
        for one in self._candidates:
            self.losses(frozenset({one}))
        if not self._meets(frozenset({self._best_first()[0]})) and not self._meets(everything):
            return min(self._known, key=lambda layers: (*badness(self._known[layers]), len(layers))), False
        short = next((layers for layers in self._short() if self._meets(layers)), None)
        if short is not None:
            return self._pruned(short), True
        return self._pruned(self._grown(everything)), False

    def _meets(self, layers: frozenset[str]) -> bool:
        return met(self.losses(layers))

    def _best_first(self) -> list[str]:
        return sorted(self._candidates, key=lambda one: badness(self.losses(frozenset({one}))))

    def _short(self) -> Iterator[frozenset[str]]:
        """One layer, then two: the most promising first; two may be a layer and the only one that takes its tensor."""
        order = self._best_first()
        yield from (frozenset({one}) for one in order)
        yield from (one for one in self._cures if len(one) == 2)
        yield from (frozenset(pair) for pair in itertools.combinations(order, 2))

    def _grown(self, everything: frozenset[str]) -> frozenset[str]:
        """Cures added one after the other until the gate is met; all of them meet it."""
        layers: frozenset[str] = frozenset()
        for one in sorted(self._cures, key=lambda members: badness(self.losses(members))):
            layers |= one
            if self._meets(layers):
                return layers
        return everything

    def _pruned(self, layers: frozenset[str]) -> frozenset[str]:
        """Without the members that are not needed; those that only take a candidate's tensor are tried first."""
        for one in sorted(layers, key=lambda member: (member in self._candidates, member)):
            if len(layers) > 1 and self._meets(layers - {one}):
                return self._pruned(layers - {one})
        return layers
