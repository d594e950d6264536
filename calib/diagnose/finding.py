"""What a diagnosis says. Types alone: reports and schemas need nothing else to read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskLoss:
    """One task on the labelled images, with some layers in INT8.

    Of shares (unit ``points``), loss and margin are percentage points; of other metrics, in the metric's own unit.

    Attributes:
        task: name.
        metric: as in ``gate.toml``.
        unit: ``points`` for shares, empty where the metric has a unit of its own.
        reference: the metric of the float model; shares from 0 to 1.
        value: the metric with these layers in INT8; shares from 0 to 1.
        loss: what was lost against float; negative where something was gained.
        margin: allowed loss.
        met: whether the loss on these images is within the margin.
        noise: root of the summed squared error of the task's outputs over that of the float outputs.
    """

    task: str
    metric: str
    unit: str
    reference: float
    value: float
    loss: float
    margin: float
    met: bool
    noise: float


@dataclass(frozen=True)
class LayerNoise:
    """How far a layer's tensor is off the float model's, from one pass.

    Attributes:
        layer: name of the tensor that the layer makes; an activation belongs to the layer before it.
        depth: position among all layers of the edge half, from 0.
        noise: power of the error over that of the tensor; errors of the layers before are in it.
        added: the same of the error that this layer alone makes: its tensor beside what the float layer makes of the
            artefact's own tensors in front of it.
        steps: noise of the float tensor rounded to the steps of its range, nothing else in INT8; null where a tensor's
            range belongs to what takes it (Q/DQ).
        sqnr_db: ratio of signal to noise in decibels; null where there is no noise.
        cosine: of the angle between both tensors as vectors.
    """

    layer: str
    depth: int
    noise: float
    added: float
    steps: float | None
    sqnr_db: float | None
    cosine: float


@dataclass(frozen=True)
class LayerLoss:
    """What a layer costs each task, measured.

    Attributes:
        layer: as in `LayerNoise`.
        int8: this layer in INT8, all others in float.
        left_float: this layer in float, all others as in the bundle.
    """

    layer: str
    int8: tuple[TaskLoss, ...]
    left_float: tuple[TaskLoss, ...]


@dataclass(frozen=True)
class Exclusion:
    """The list of layers to keep in float.

    Attributes:
        keep_float: of the whole build: what the bundle keeps in float already, and what was found.
        found: the layers that the search added.
        met: whether the gate is met with it; if not, it is the best that was seen.
        tasks: what is lost with it.
        shortest: whether every shorter list of the layers looked at was tried and fails; else, where the gate is met,
            none of it can be left out.
        tried: how many lists were measured.
    """

    keep_float: tuple[str, ...]
    found: tuple[str, ...]
    met: bool
    tasks: tuple[TaskLoss, ...]
    shortest: bool
    tried: int
