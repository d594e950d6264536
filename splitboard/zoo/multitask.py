"""The multi-task network of MTL-Split: one shared backbone, one head per task (arXiv 2407.05982).

The paper's head flattens the feature map; at 1280x7x7 that head alone would weigh 64 MB. Ours pools first, which keeps
the head and the payload at the last split small; the rest is as in the paper: one hidden layer, dropout 0.1, ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class PooledHead(nn.Sequential):
    """Global average pool, a hidden layer, class scores: ``[n, c, h, w]`` to ``[n, classes]``, float32."""

    def __init__(self, channels: int, classes: int, hidden: int) -> None:
        super().__init__(nn.Linear(channels, hidden), nn.Dropout(0.1), nn.ReLU(), nn.Linear(hidden, classes))


class MultiTaskNet(nn.Module):
    """A backbone shared by several task heads.

    Args:
        backbone: maps ``[n, 3, h, w]`` to ``[n, channels, h', w']``.
        channels: channels of the backbone's output.
        classes: number of classes by task name, in the order of the outputs.
        hidden: width of each head's hidden layer.
    """

    def __init__(self, backbone: nn.Module, channels: int, classes: Mapping[str, int], hidden: int = 128) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.heads = nn.ModuleDict({task: PooledHead(channels, count, hidden) for task, count in classes.items()})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns the class scores (logits) of every task, ``{task: [n, classes]}``."""
        features = self.flatten(self.pool(self.backbone(image)))
        return {task: head(features) for task, head in self.heads.items()}
