"""What a bundle's edge half was quantised from, taken from the bundle alone.

The float model is the bundle's remote graph without its preprocessing. Ranges and corrected biases are in the bundle,
and equalisation depends on the weights alone, so the same steps give the same INT8 graph again: `require_same` proves
it, before anything is blamed on a layer of it. Early exits, which no task needs, are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.bias import with_biases
from calib.equalise import equalise
from calib.keep_float import operators_of
from calib.ranges import RangeTable
from export.cut import whole_graph
from export.graph import Graph
from splitboard.contract.bundle import Bundle, Split
from splitboard.contract.decode import read_json
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import normalise

RANGES_FILE = "calibration/ranges.json"
BIASES_FILE = "calibration/biases.npz"

_SHARE_OF_NOISE = 0.5
"""A rebuilt half may be off the bundle's by this share of what INT8 changes; other tool versions round otherwise."""

_BUILD_AGAIN = ["build the bundle again with this version: splitboard build"]


@dataclass(frozen=True)
class Rebuilt:
    """What one split's edge half was quantised from.

    Attributes:
        graph: the float model.
        balanced: the same with its channels scaled as the build did; biases as in the model.
        biases: corrected ones, by the tensor that the layer makes.
        table: the ranges that were used.
        crossing: every tensor that an edge half of the bundle gives, or that an exit takes.
        outputs: what this edge half gives, in order.
        keep_float: layers that the bundle has in float.
        images: the golden images, normalised, ``[n, c, h, w]``.
    """

    graph: Graph
    balanced: Graph
    biases: dict[str, NDArray[np.float32]]
    table: RangeTable
    crossing: frozenset[str]
    outputs: tuple[str, ...]
    keep_float: tuple[str, ...]
    images: NDArray[np.float32]

    def corrected(self, but: Collection[str] = ()) -> Graph:
        """The model with corrected biases, but for some layers: a layer whose weights are not rounded needs none."""
        exact = operators_of(self.balanced, but, self.crossing)
        return with_biases(self.balanced, {name: bias for name, bias in self.biases.items() if name not in exact})


def rebuild(folder: Path, bundle: Bundle, split: Split) -> Rebuilt:
    """Reads what a split's edge half was made from.

    Args:
        folder: the bundle.
        bundle: its manifest.
        split: one with an edge half.

    Raises:
        UserError: the bundle is not INT8, or lacks what is needed.
    """
    if bundle.precision != "int8":
        raise UserError(
            f'"{folder}" is "{bundle.precision}": only INT8 has layers to blame', ["build with --precision int8"]
        )
    graph = whole_graph(onnx.load(folder / str(bundle.splits[0].server)))
    given = [name for one in bundle.splits for name in edge_outputs(one, graph)]
    crossing = frozenset((*given, *(name for one in bundle.exits for name in one.takes)))
    balanced, pairs = equalise(graph, crossing) if bundle.quantisation.equalised else (graph, 0)
    if pairs != bundle.quantisation.equalised:
        raise UserError(
            f'"{folder}" has "{bundle.quantisation.equalised}" pairs of equalised layers, {pairs} are found again',
            _BUILD_AGAIN,
        )
    with np.load(folder / bundle.golden) as golden:
        images = normalise(golden["images"], bundle.preprocessing)
    return Rebuilt(
        graph=graph,
        balanced=balanced,
        biases={name: bias for name, bias in _biases(folder, bundle).items() if name in graph.producer},
        table=read_json(RangeTable, folder / RANGES_FILE),
        crossing=crossing,
        outputs=edge_outputs(split, graph),
        keep_float=bundle.quantisation.keep_float,
        images=images,
    )


def edge_outputs(split: Split, graph: Graph) -> tuple[str, ...]:
    """What a split's edge half computes: what crosses, the image itself left out, then the local tasks."""
    if split.is_remote:
        return ()
    wanted = dict.fromkeys((*(tensor.name for tensor in split.tensors), *split.local_tasks))
    return tuple(name for name in wanted if name not in graph.inputs)


def _biases(folder: Path, bundle: Bundle) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}
    if (folder / BIASES_FILE).is_file():
        with np.load(folder / BIASES_FILE, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored}
    if len(found) != bundle.quantisation.corrected:
        raise UserError(
            f'"{folder}" has {len(found)} corrected biases in "{BIASES_FILE}", its manifest says '
            f"{bundle.quantisation.corrected}",
            _BUILD_AGAIN,
        )
    return found


def require_same(
    folder: Path,
    bundled: Sequence[NDArray[np.float32]],
    rebuilt: Sequence[NDArray[np.float32]],
    floating: Sequence[NDArray[np.float32]],
) -> float:
    """Proves that the rebuilt edge half is the bundle's.

    Args:
        folder: the bundle, for the error.
        bundled: every output of its edge half over the golden images.
        rebuilt: the same of the rebuilt one.
        floating: the same of the float model.

    Returns:
        How far the two are apart, as a share of what INT8 changes: 0 where they are equal bit for bit.

    Raises:
        UserError: they are not the same.
    """
    shares = [
        0.0 if np.array_equal(a, b) else float(np.linalg.norm(a - b) / (np.linalg.norm(a - c) or 1.0))
        for a, b, c in zip(bundled, rebuilt, floating, strict=True)
    ]
    apart = max(shares)
    if not apart <= _SHARE_OF_NOISE:
        raise UserError(
            f'the edge half of "{folder}" does not follow from its ranges and weights: rebuilt, its outputs are off by '
            f"{apart:.2g} times what INT8 changes",
            ["it was changed after the build, or another version of the tools built it", *_BUILD_AGAIN],
        )
    return apart
