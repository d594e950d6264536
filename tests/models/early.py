"""A two-task network that was made with an early exit; trained by nobody, so only its arithmetic counts."""

import torch
from torch import Tensor, nn


class Early(nn.Module):
    """Image of 32x32 to {"kind": [n, 3], "age": [n, 2]}, and an exit of the first task behind the first stage."""

    def __init__(self, exits: bool) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU()),
        )
        self.early = nn.Sequential(nn.Conv2d(8, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
        self.early_head = nn.Linear(4, 3)
        self.kind, self.age = nn.Linear(6, 3), nn.Linear(6, 2)
        self.exits = exits

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        first = self.stages[0](image)
        last = self.stages[1](first).mean((2, 3))
        found = {"kind": self.kind(last), "age": self.age(last)}
        if self.exits:
            found = {"kind_early": self.early_head(self.early(first).mean((2, 3))), **found}
        return found


def make() -> Early:
    torch.manual_seed(3)
    return Early(exits=True)


def plain() -> Early:
    torch.manual_seed(3)
    return Early(exits=False)
