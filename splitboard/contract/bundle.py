"""The bundle: a folder that holds everything a board and a server need, and nothing else.

``manifest.json`` names every file with its sha256, so the sha256 of the manifest identifies the whole bundle.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.decode import read_json, to_json
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import InputTable, Preprocessing, float_table, quantised_table

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class TensorSpec:
    """One tensor that crosses a border.

    Attributes:
        name: the tensor's name in ``model.onnx``.
        shape: with the batch of one, in ``layout``.
        dtype: numpy's name: ``float32``, ``int8`` or ``uint8``.
        layout: ``NHWC``, ``NCHW`` or ``NC``; of a model's inputs also ``N``, ``NCL`` or ``NCDHW``.
        scale: ``real = scale * (stored - zero_point)``; ``None`` where the values are the real ones.
        zero_point: as stored.
    """

    name: str
    shape: Tuple[int, ...]
    dtype: str
    layout: str
    scale: Optional[float] = None
    zero_point: Optional[int] = None

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor as stored."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def real(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """The real numbers of the tensor as stored, float32."""
        if self.scale is None:
            return stored.astype(np.float32, copy=False)
        offset: NDArray[np.float32] = stored.astype(np.float32) - np.float32(self.zero_point or 0)
        return offset * np.float32(self.scale)


@dataclass(frozen=True)
class Task:
    """One task; the model's output has its name.

    Attributes:
        name: as in the model's outputs.
        labels: class names in the order of the scores.
    """

    name: str
    labels: Tuple[str, ...]


@dataclass(frozen=True)
class Exit:
    """An early head of a task: an output of the model that only edge halves compute.

    Attributes:
        output: the model's output, which is none of the tasks.
        task: whose classes it scores, in the order of the task's labels.
        scope: the module whose output it takes, as in the user's model; empty where that is not known.
        takes: the model's tensors that its head takes.
    """

    output: str
    task: str
    scope: str
    takes: Tuple[str, ...]


@dataclass(frozen=True)
class Artifact:
    """One file of the bundle.

    Attributes:
        path: relative to the bundle, with forward slashes.
        format: ``tflite``, ``onnx``, ``onnx-weights`` (of the ONNX files beside it), ``npz``, ``json`` or ``text``.
        size_bytes: size of the file.
        sha256: of the file's bytes, hexadecimal.
    """

    path: str
    format: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """One way to divide the model between board and server.

    Attributes:
        id: ``s00`` remote only, ``sNN`` in topological order, the last one local only; ``mNN`` with several tensors.
        scope: the module that the split follows, as in the user's model; ``remote`` or ``local`` at the two ends.
        natural: carries strictly fewer values than the model's input tensor.
        tensors: what crosses the wire; empty for local only. One that is called as the bundle's ``edge_input`` is that
            tensor itself, which no edge graph computes.
        local_tasks: tasks that the edge answers, in the bundle's order: all for local only, none for remote only.
        exits: exits that the edge half gives beside, in the bundle's order; none of local tasks, which need no exit.
        edge: the edge file's path in the bundle; ``None`` for remote only.
        edge_signature: signature of the edge file to run; ``None`` where its format has none.
        server: the server graph's path in the bundle; ``None`` for local only.
        edge_macs: multiply-accumulates of the edge graph, its exits included.
        server_macs: of the server graph.
        edge_parameters: weights of the edge graph, its exits included.
        server_parameters: of the server graph.
        float_error: by output, max |server(edge(x)) - whole(x)| / max |whole(x)| of the float halves, measured at
            build time on calibration images.
    """

    id: str
    scope: str
    natural: bool
    tensors: Tuple[TensorSpec, ...]
    local_tasks: Tuple[str, ...]
    exits: Tuple[str, ...]
    edge: Optional[str]
    edge_signature: Optional[str]
    server: Optional[str]
    edge_macs: int
    server_macs: int
    edge_parameters: int
    server_parameters: int
    float_error: Dict[str, float]

    @property
    def payload_bytes(self) -> int:
        """Tensor bytes of one request, before any codec."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def is_remote(self) -> bool:
        """Whether the image itself is sent."""
        return self.edge is None

    @property
    def is_local(self) -> bool:
        """Whether nothing is sent."""
        return self.server is None


@dataclass(frozen=True)
class Calibration:
    """What the value ranges come from.

    Attributes:
        n_samples: images whose values made the ranges.
        n_held_out: images that judged them and took no part.
        n_duplicates: images that were left out since their pixels were there already.
        strata: images by label, all tasks' in one; the empty text where there are no labels.
        sha256: of the sorted sample hashes, held-out images included.
    """

    n_samples: int
    n_held_out: int
    n_duplicates: int
    strata: Dict[str, int]
    sha256: str


@dataclass(frozen=True)
class Quantisation:
    """How the edge half was quantised.

    Attributes:
        precision: of the edge half, e.g. ``int8``.
        ranges: the method that the ranges were derived by, e.g. ``minmax``.
        errors: by method and task, error of the outputs relative to the outputs on held-out images; empty where the
            method was named and there was nothing to choose.
        equalised: pairs of layers whose channels were scaled to equal ranges.
        corrected: layers whose bias was corrected.
        keep_float: tensors whose operators were left in float.
    """

    precision: str
    ranges: str
    errors: Dict[str, Dict[str, float]]
    equalised: int
    corrected: int
    keep_float: Tuple[str, ...]


@dataclass(frozen=True)
class Bundle:
    """The manifest.

    Attributes:
        schema_version: of this file.
        name: of the model; the served models are called ``<name>-<split id>``.
        model_sha256: of ``model.onnx``.
        checkpoint_sha256: of the checkpoint that was exported.
        board: the kind of board that the edge half is for.
        tasks: in the order of the model's outputs; no exits among them.
        exits: early heads of the tasks, in the order of the model's outputs.
        input: the model's float input, NCHW.
        edge_input: the edge graph's input, in its dtype and layout.
        preprocessing: from a source image to the input.
        splits: remote only first, local only last.
        artifacts: every file but the manifest.
        calibration: where the ranges come from.
        quantisation: how they were used.
        golden: path of the ``.npz`` with uint8 ``images``, prepared, and float ``<task>`` outputs.
        golden_tolerance: by task, largest |INT8 - float| that a machine's self-check may show.
        operators: by signature, the number of each operator, read from the edge file.
        notes: what the build changed and the user should know, one line each.
        tool_versions: what built it.
    """

    schema_version: int
    name: str
    model_sha256: str
    checkpoint_sha256: str
    board: str
    tasks: Tuple[Task, ...]
    exits: Tuple[Exit, ...]
    input: TensorSpec
    edge_input: TensorSpec
    preprocessing: Preprocessing
    splits: Tuple[Split, ...]
    artifacts: Tuple[Artifact, ...]
    calibration: Calibration
    quantisation: Quantisation
    golden: str
    golden_tolerance: Dict[str, float]
    operators: Dict[str, Dict[str, int]]
    notes: Tuple[str, ...]
    tool_versions: Dict[str, str]

    @property
    def precision(self) -> str:
        """Of the edge half, e.g. ``int8``."""
        return self.quantisation.precision

    @property
    def edge_files(self) -> Tuple[str, ...]:
        """Paths of the edge files in the bundle: one for all splits (TFLite), or one for each."""
        return tuple(dict.fromkeys(split.edge for split in self.splits if split.edge is not None))

    def split(self, split_id: str) -> Split:
        """The split of this id.

        Raises:
            UserError: there is none; the nearest is named.
        """
        for split in self.splits:
            if split.id == split_id:
                return split
        raise unknown_split(split_id, [split.id for split in self.splits], "bundle")

    def task(self, name: str) -> Task:
        """The task of this name, which must be there."""
        return next(task for task in self.tasks if task.name == name)

    def exits_of(self, split: Split) -> Tuple[Exit, ...]:
        """The exits that a split's edge half gives."""
        return tuple(one for one in self.exits if one.output in split.exits)

    def input_table(self) -> InputTable:
        """The edge graph's input of every pixel value."""
        spec = self.edge_input
        channel_axis = 1 if spec.layout == "NCHW" else -1
        if spec.scale is None:
            return float_table(self.preprocessing, channel_axis)
        return quantised_table(self.preprocessing, spec.scale, spec.zero_point or 0, spec.dtype, channel_axis)

    def served_name(self, split: Split) -> str:
        """The name under which the server offers a split's server half."""
        return f"{self.name}-{split.id}"


def unknown_split(wanted: str, known: list[str], where: str) -> UserError:
    """The error for a split id that is not there; names the nearest in number of its kind, else all."""
    tries = [f"the {where} has: {', '.join(known)}"]
    alike = [other for other in known if other[0] == wanted[:1]]
    if alike and wanted[1:].isdecimal():
        nearest = min(alike, key=lambda other: abs(int(other[1:]) - int(wanted[1:])))
        tries.insert(0, f'"{nearest}" is the nearest')
    return UserError(f'unknown split "{wanted}"', tries)


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, bundle: Bundle) -> None:
    """Writes ``manifest.json``."""
    (folder / MANIFEST).write_text(to_json(bundle, indent=1) + "\n", encoding="utf-8")


def bundle_sha256(folder: Path) -> str:
    """The bundle's identity: the manifest's sha256."""
    return file_sha256(folder / MANIFEST)


def load_bundle(folder: Path) -> Bundle:
    """Reads the manifest and checks every file against it.

    Args:
        folder: the bundle.

    Raises:
        UserError: no bundle there, another schema, or a file that is missing, changed or too many.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(f'"{folder}" is not a bundle: it has no {MANIFEST}', ["splitboard build MODEL --board KIND"])
    _check_schema(folder)
    bundle = read_json(Bundle, folder / MANIFEST)
    rebuild = ["copy the bundle again from where it was built", "build it again: splitboard build"]
    _check_tasks(folder, bundle)
    _check_exits(folder, bundle)
    for artifact in bundle.artifacts:
        path = folder / artifact.path
        if Path(artifact.path).is_absolute() or ".." in Path(artifact.path).parts:
            raise UserError(f'"{folder}" names a file outside of itself: "{artifact.path}"', rebuild)
        if not path.is_file():
            raise UserError(f'"{folder}" lacks the file "{artifact.path}"', rebuild)
        if path.stat().st_size != artifact.size_bytes or file_sha256(path) != artifact.sha256:
            raise UserError(f'"{path}" was changed since it was built: its sha256 is not the manifest\'s', rebuild)
    known = {artifact.path for artifact in bundle.artifacts} | {MANIFEST}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder).as_posix() not in known:
            raise UserError(f'"{path}" is not in the manifest of the bundle', rebuild)
    return bundle


def _check_schema(folder: Path) -> None:
    """Another version's manifest is told as such, before what is missing in it."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError:
        return  # told with its place by the decoder
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version is not None and version != SCHEMA_VERSION:
        raise UserError(
            f'"{folder}" has bundle schema "{version}", this version reads {SCHEMA_VERSION}',
            ["build the bundle again with this version of splitboard"],
        )


def _check_tasks(folder: Path, bundle: Bundle) -> None:
    """Every task must be answered by exactly one half of every split."""
    tasks = {task.name for task in bundle.tasks}
    for split in bundle.splits:
        local = set(split.local_tasks)
        if not local <= tasks or (local == tasks) != split.is_local or (local and split.is_remote):
            raise UserError(
                f'"{folder}" has split {split.id} answer "{", ".join(split.local_tasks)}" on the board, which does not '
                "fit its tasks and halves",
                ["build the bundle again: splitboard build"],
            )


def _check_exits(folder: Path, bundle: Bundle) -> None:
    """Every exit must belong to a task, and a split's exits to tasks that its server half answers."""
    tasks = {task.name for task in bundle.tasks}
    of = {one.output: one.task for one in bundle.exits}
    odd = [one.output for one in bundle.exits if one.task not in tasks or one.output in tasks]
    for split in bundle.splits:
        remote = () if split.is_remote else tasks - set(split.local_tasks)
        odd += [output for output in split.exits if of.get(output) not in remote]
    if odd or len(of) != len(bundle.exits):
        raise UserError(
            f'"{folder}" has the exit "{odd[0] if odd else bundle.exits[0].output}", which does not fit its tasks and '
            "halves",
            ["build the bundle again: splitboard build"],
        )
