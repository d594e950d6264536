"""The joint loss of all outputs of a multi-task network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitboard.zoo.multitask import Output
from splitboard.zoo.training.recipe import Sum, Uncertainty


class JointLoss(nn.Module):
    """Cross-entropy of every output, joined to one number to train on.

    A task's loss L is that of its last output plus those of its exits, each times its weight. `Sum` adds the tasks'.
    `Uncertainty` learns a log variance s of every task and adds ``exp(-s) L + s / 2`` (arXiv 1705.07115, equation 10,
    for classification): a task that stays uncertain counts less, and the second term keeps s from growing for ever.

    Args:
        outputs: of the network.
        weighting: of the tasks.
    """

    def __init__(self, outputs: Sequence[Output], weighting: Sum | Uncertainty) -> None:
        super().__init__()
        self._outputs = tuple(outputs)
        tasks = tuple(dict.fromkeys(one.task for one in outputs))
        self.weights: Tensor
        self.task_of: Tensor
        self.register_buffer("weights", torch.tensor([one.weight for one in outputs]))
        self.register_buffer("task_of", torch.tensor([tasks.index(one.task) for one in outputs]))
        self.log_variances: nn.Parameter | None = None
        if isinstance(weighting, Uncertainty):
            self.log_variances = nn.Parameter(torch.full((len(tasks),), weighting.log_variance))

    def forward(self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The joint loss.

        Args:
            logits: by output, ``[n, classes]``.
            targets: class probabilities by task, ``[n, classes]``, float32.

        Returns:
            The number to train on, and the plain cross-entropy of every output, ``[outputs]``, without gradient.
        """
        each = torch.stack([F.cross_entropy(logits[one.name].float(), targets[one.task]) for one in self._outputs])
        if self.log_variances is None:
            return (each * self.weights).sum(), each.detach()
        by_task = torch.zeros_like(self.log_variances).index_add(0, self.task_of, each * self.weights)
        joint = torch.exp(-self.log_variances) * by_task + self.log_variances / 2
        return joint.sum(), each.detach()
