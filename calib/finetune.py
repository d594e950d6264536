"""Quantisation-aware fine-tuning: the weights learn to live with the rounding that the INT8 artefact does to them.

It works on the float ONNX graph, not on user code. The graph is replayed as torch operations; every tensor that the
TFLite file quantises is rounded as the file will round it, from the same range table, and so are the weights. Gradients
pass the rounding as if it were not there, and stop where a value is outside of its range (the straight-through
estimator, arXiv 1308.3432; its use here follows Jacob et al., arXiv 1712.05877). Biases stay float, since
their INT32 steps are too small to matter, and so do constants that are added or multiplied. The ranges stay as they
are; a build calibrates the new model again.

The only module of this package that needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor, nn

from calib.ranges import TFLITE_STEPS, Range, RangeTable
from export.edge_form import edge_form
from export.graph import Graph
from export.reference import optimised_session
from export.replay import Replay, shared_constants
from splitboard.contract.errors import UserError

_LOWEST, _HIGHEST = -128, 127
_WEIGHT_STEPS = 127
_SMALLEST = 1e-12
"""In place of a zero that is divided by: of a channel without weights, of an output that is always the same."""

_PROBABILITY = Range(0.0, TFLITE_STEPS / 256, TFLITE_STEPS / 256)
_FIXED = {"Sigmoid": _PROBABILITY, "Softmax": _PROBABILITY}
"""Ranges that TFLite's INT8 specification prescribes, whatever was calibrated."""

_MOVES = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Squeeze"})
"""Operators whose output takes its input's scale in the specification: their values are rounded already."""

_ELEMENTWISE = frozenset({"Add", "Mul", "Sub"})
"""Operators that may take a constant operand, which is no weight."""


@dataclass(frozen=True)
class FineTuning:
    """How to fine-tune.

    Attributes:
        epochs: passes over the images.
        learning_rate: Adam's at the start, falling to zero along a cosine, as a share of the root mean square of a
            weight's output channel.
        batch: images per step.
        seed: of the order of the images.
        threads: fixed, since the number of threads changes the order of sums and so the result.
    """

    epochs: int = 3
    learning_rate: float = 1e-3
    batch: int = 32
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f'cannot learn at the rate "{self.learning_rate}"', ["--learning-rate 1e-3"])


class _Rounded(torch.autograd.Function):
    """A tensor at the values that INT8 can hold; the gradient passes inside of the range and stops outside.

    Several times as fast as `torch.fake_quantize_per_tensor_affine` on a processor, and known to `torch.vmap`.
    """

    @staticmethod
    def forward(x: Tensor, scale: float, lowest: int, highest: int) -> Tensor:
        return x.mul(1 / scale).round_().clamp_(lowest, highest).mul_(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, int, int], output: Tensor) -> None:  # noqa: ARG004 (torch's)
        x, scale, lowest, highest = inputs
        ctx.save_for_backward(x)
        ctx.limits = scale * (lowest - 0.5), scale * (highest + 0.5)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        low, high = ctx.limits
        return gradients[0] * ((x >= low) & (x <= high)), None, None, None

    @staticmethod
    def vmap(
        info: object,  # noqa: ARG004 (torch's)
        in_dims: tuple[int | None, ...],
        *inputs: Any,
    ) -> tuple[Tensor, int | None]:
        # Value by value, so a batch is no different.
        return _Rounded.apply(*inputs), in_dims[0]  # type: ignore[no-untyped-call]


def _rounding(found: Range) -> Callable[[Tensor], Tensor]:
    """Rounds to a range's INT8 values; zero, which every range includes, is one of them."""
    scale = found.asymmetric_scale
    zero_point = _LOWEST + round(-found.min / scale)

    def rounded(x: Tensor) -> Tensor:
        result: Tensor = _Rounded.apply(x, scale, _LOWEST - zero_point, _HIGHEST - zero_point)  # type: ignore[no-untyped-call]
        return result

    return rounded


def _round_weight(weight: Tensor, axis: int) -> Tensor:
    """Symmetric, one scale per output channel: max |w| / 127."""
    others = [dimension for dimension in range(weight.ndim) if dimension != axis]
    scale = (weight.detach().abs().amax(others) / _WEIGHT_STEPS).clamp(min=_SMALLEST)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -_WEIGHT_STEPS, _WEIGHT_STEPS)


@dataclass(frozen=True)
class _Trained:
    """A constant that is trained.

    Attributes:
        start: its values in the float model.
        unit: what one unit of learning means, broadcast to its shape.
        axis: of the output channels of a weight, which is rounded; ``None`` for a bias, which is not.
    """

    start: Tensor
    unit: Tensor
    axis: int | None

    def moved(self, units: Tensor) -> Tensor:
        return self.start + self.unit * units


class Int8Replay(nn.Module):
    """A float graph as its INT8 artefact computes it, up to the rounding of sums, with its weights to be trained.

    What is trained is how far every weight has moved, in units of its output channel's root mean square: channels of
    one layer can differ by orders of magnitude, and so do the steps that they are rounded to. A bias counts as one more
    weight whose input is always at the end of its range.

    Args:
        graph: the whole model in its edge form, one image in.
        table: ranges of the tensors to round, those of `calib.observe.quantisable`.

    Attributes:
        moves: the parameters, by buffer name of the replay; zero at first.

    Raises:
        UserError: an operator has weights of an unknown kind, or a tensor is constantly zero.
    """

    def __init__(self, graph: Graph, table: RangeTable) -> None:
        super().__init__()
        self._outputs = tuple(graph.outputs)
        constants = shared_constants(graph)
        after = {name: _rounding(found) for name, found in _rounded_ranges(graph, table).items()}
        self._replay = Replay(graph, graph.outputs, constants, after)
        self._trained: dict[str, _Trained] = {}
        for node in graph.nodes:
            self._trained |= _trained(graph, table, constants, node)
        self._buffer_of = {name: self._replay.buffer_names[name] for name in self._trained}
        self.moves = nn.ParameterDict(
            {self._buffer_of[name]: nn.Parameter(torch.zeros_like(one.start)) for name, one in self._trained.items()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps ``[n, c, h, w]`` to ``{output: [n, ...]}``."""
        constants = {}
        for name, one in self._trained.items():
            value = one.moved(self.moves[self._buffer_of[name]])
            constants[self._buffer_of[name]] = value if one.axis is None else _round_weight(value, one.axis)

        def single(image: Tensor) -> tuple[Tensor, ...]:
            made = torch.func.functional_call(self._replay, constants, (image,))
            return made if isinstance(made, tuple) else (made,)

        # The graph has batch 1. Mapped over many images its fixed leading ones (Reshape, Flatten) need no care.
        made = torch.vmap(single)(images.unsqueeze(1))
        return {name: value.flatten(0, 1) for name, value in zip(self._outputs, made, strict=True)}

    @torch.no_grad()
    def trained(self) -> dict[str, NDArray[np.float32]]:
        """The weights and biases as they are now, not rounded, by name."""
        return {name: one.moved(self.moves[self._buffer_of[name]]).numpy() for name, one in self._trained.items()}


def _trained(graph: Graph, table: RangeTable, constants: Mapping[str, Tensor], node: NodeProto) -> dict[str, _Trained]:
    """The weight and the bias of a node.

    Raises:
        UserError: the node takes a constant that is neither a weight of a known kind nor an operand of arithmetic.
    """
    if node.op_type not in ("Conv", "Gemm"):
        _check_constants(graph, node)
        return {}
    if node.input[1] not in constants:
        return {}
    weight = constants[node.input[1]]
    axis = 0 if node.op_type == "Conv" or _flag(node, "transB") else 1
    others = [dimension for dimension in range(weight.ndim) if dimension != axis]
    unit = weight.square().mean(others, keepdim=True).sqrt()
    found = {node.input[1]: _Trained(weight, unit, axis)}
    if len(node.input) > 2 and node.input[2] in constants:
        reach = table.ranges[node.input[0]].magnitude
        found[node.input[2]] = _Trained(constants[node.input[2]], unit.flatten() * reach, None)
    return found


def _flag(node: NodeProto, name: str) -> bool:
    return any(one.name == name and helper.get_attribute_value(one) for one in node.attribute)


def _check_constants(graph: Graph, node: NodeProto) -> None:
    if node.op_type in _ELEMENTWISE:
        return
    for name in node.input:
        if name in graph.constants and graph.constant(name).dtype.kind == "f" and graph.constant(name).size > 1:
            raise UserError(
                f'operator "{node.op_type}" (node "{node.name}") has weights of a kind that cannot be fine-tuned',
                ["fine-tuning knows the weights of Conv and Gemm"],
            )


def _rounded_ranges(graph: Graph, table: RangeTable) -> dict[str, Range]:
    """The range that each rounded tensor has in the artefact.

    Raises:
        UserError: a tensor is constantly zero.
    """
    ranges = {name: table.of(name) for name in table.ranges}
    for node in graph.nodes:
        result = node.output[0]
        if node.op_type in _MOVES and node.input[0] in ranges:
            ranges.pop(result, None)
        elif node.op_type in _FIXED and result in ranges:
            ranges[result] = _FIXED[node.op_type]
    return ranges


def float_outputs(graph: Graph, images: Iterable[NDArray[np.float32]]) -> dict[str, Tensor]:
    """What the float graph says of images ``[1, c, h, w]``: ``{output: [n, ...]}``."""
    session = optimised_session(graph.model)
    found = [session.run(graph.outputs, {graph.inputs[0]: image}) for image in images]
    return {name: torch.from_numpy(np.concatenate(values)) for name, *values in zip(graph.outputs, *found, strict=True)}


def loss(
    found: Mapping[str, Tensor], teacher: Mapping[str, Tensor], power: Mapping[str, float], labels: Mapping[str, Tensor]
) -> Tensor:
    """The sum over tasks of the cross-entropy, where there are labels, and of the distance to the float model.

    The distance is the mean squared difference of the outputs by the power of the float model's: the inverse of the
    signal to noise ratio. Squared differences of logits are what distillation becomes at a high temperature (Hinton
    et al., arXiv 1503.02531, section 2.1) and did better than the divergence of softened probabilities (Kim et al.,
    arXiv 2105.08919); they serve outputs that are no class scores as well.

    Args:
        found: outputs of the quantised model, ``{task: [n, ...]}``.
        teacher: those of the float model.
        power: mean square of those over all images, their mean taken off.
        labels: true classes, ``{task: [n]}``, of the tasks that have some.
    """
    parts = [F.mse_loss(found[task], teacher[task]) / power[task] for task in found]
    parts += [F.cross_entropy(found[task], labels[task]) for task in labels]
    return torch.stack(parts).sum()


def finetune(
    graph: Graph,
    table: RangeTable,
    images: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    count: int,
    labels: Mapping[str, NDArray[np.int64]],
    settings: FineTuning,
    on_step: Callable[[int, int, float], None],
) -> tuple[Graph, tuple[float, ...]]:
    """Fine-tunes a model for its INT8 artefact.

    Args:
        graph: the float model, one image in; it is also the teacher.
        table: ranges of the tensors of its edge form that the artefact rounds.
        images: the images of these numbers, normalised, ``[n, c, h, w]``.
        count: of all images.
        labels: true classes by task, ``[count]``; a task without labels learns from the float model alone.
        settings: how to fine-tune.
        on_step: called after every step with (steps done, steps in all, loss).

    Returns:
        The same graph with new weights, and the mean loss of every epoch.

    Raises:
        UserError: the loss is not finite, or the graph has weights of an unknown kind.
    """
    torch.set_num_threads(settings.threads)
    student = Int8Replay(edge_form(graph), table)
    starts = range(0, count, settings.batch)
    teacher = float_outputs(graph, (images(np.array([i])) for i in range(count)))
    power = {task: max(float(value.var(unbiased=False)), _SMALLEST) for task, value in teacher.items()}
    wanted = {task: torch.from_numpy(values) for task, values in labels.items()}
    optimiser = torch.optim.Adam(student.parameters(), settings.learning_rate)
    total = settings.epochs * len(starts)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
    random = np.random.default_rng(settings.seed)
    losses: list[float] = []
    for _ in range(settings.epochs):
        order = random.permutation(count)
        for start in starts:
            chosen = order[start : start + settings.batch]
            found = student(torch.from_numpy(images(chosen)).to(memory_format=torch.channels_last))
            part = {task: value[chosen] for task, value in teacher.items()}
            value = loss(found, part, power, {task: known[chosen] for task, known in wanted.items()})
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(value)
            optimiser.step()
            schedule.step()
            losses.append(_finite(float(value.detach())))
            on_step(len(losses), total, losses[-1])
    return with_weights(graph, student.trained()), tuple(np.mean(np.reshape(losses, (settings.epochs, -1)), axis=1))


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise UserError(f'the loss of the fine-tuning became "{value}"', ["give a smaller --learning-rate"])
    return value


def with_weights(graph: Graph, weights: Mapping[str, NDArray[np.float32]]) -> Graph:
    """The same graph with other values of some constants."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights[tensor.name]), tensor.name))
    return Graph(model)
