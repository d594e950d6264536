"""The MLPs of the predefined-sparsity papers beside their dense twins, on digits that scikit-learn ships.

The parent paper's network is 800-100-10 with out-degrees 50 and 10 (arXiv 1812.01164; `[800, 100, 10], fo [50, 10]`),
the successor's are 800-40-40-10 with out-degrees 2, 9 and 10 and a dense 800-3-3-10 of about as many weights
(arXiv 2407.11763). Their MNIST is 784 pixels and 16 zeros. Here the 1,797 digits of 8x8 are enlarged to 28x28 and get
the same 16 zeros.

A fifth of the digits is the test part, a fifth validation, split once and by class. Each seed draws weights, pattern
and batches anew. As in the papers: He's normal weights (with the inputs that exist), biases of 0.1, Adam at 1e-3. What
counts on the test part is the epoch that was best on validation, of equally good ones the first; a training ends when
`PATIENCE` epochs were no better.

Usage: python benchmarks/methods/digits.py [--quick] [--pages docs/results]
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt

import numpy as np
import torch
from figures import Spread
from result_page import arguments
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from stamp import paragraph, take_stamp
from torch import Tensor, nn
from torch.nn import functional as F

from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import resize
from splitboard.zoo.sparsity import Stored, stored
from splitboard.zoo.sparsity.patterns import Junction, draw
from splitboard.zoo.sparsity.scattered import ScatteredLinear

WIDTH = 800
MOST_EPOCHS = 300
PATIENCE = 25
"""Epochs without a better validation part after which a training ends."""

BATCH = 64
LEARNING_RATE = 1e-3
_BIAS = 0.1
_SIDE = 28
_LEVELS = 16
"""A digit's pixels are 0 to 16."""

_SEEDS = 10
_INADMISSIBLE = (800, 3, 1)
"""A junction whose out-degree gives no whole in-degree: its refusal stands in the page."""


@dataclass(frozen=True)
class Mlp:
    """One network.

    Attributes:
        layers: neurons, inputs first.
        out_degrees: of each junction.
        note: which network of the papers it is.
    """

    layers: tuple[int, ...]
    out_degrees: tuple[int, ...]
    note: str

    @property
    def name(self) -> str:
        """As the papers write it."""
        return f"{list(self.layers)}, fo {list(self.out_degrees)}"


NETWORKS = (
    Mlp((WIDTH, 100, 10), (100, 10), "parent paper, dense"),
    Mlp((WIDTH, 100, 10), (50, 10), "parent paper, sparse"),
    Mlp((WIDTH, 40, 40, 10), (40, 40, 10), "successor, wide and dense"),
    Mlp((WIDTH, 40, 40, 10), (2, 9, 10), "successor, wide and sparse"),
    Mlp((WIDTH, 3, 3, 10), (3, 3, 10), "successor, narrow and dense"),
)


@dataclass(frozen=True)
class Part:
    """Digits: ``[n, 800]`` float32 from 0 to 1, and their labels ``[n]``."""

    images: Tensor
    labels: Tensor


def parts() -> tuple[Part, Part, Part]:
    """Training, validation and test part."""
    digits = load_digits()
    pixels = np.rint(digits.images / _LEVELS * 255).astype(np.uint8)[..., None]
    enlarged = resize(pixels, _SIDE, _SIDE).reshape(len(pixels), -1).astype(np.float32) / 255
    images = np.pad(enlarged, ((0, 0), (0, WIDTH - enlarged.shape[1])))
    everything = np.arange(len(images))
    rest, test = train_test_split(everything, test_size=0.2, random_state=0, stratify=digits.target)
    train, validation = train_test_split(rest, test_size=0.25, random_state=0, stratify=digits.target[rest])
    train, validation, test = (
        Part(torch.from_numpy(images[rows]), torch.from_numpy(digits.target[rows]))
        for rows in (train, validation, test)
    )
    return train, validation, test


def make(mlp: Mlp, seed: int) -> nn.Sequential:
    """A network with random weights and patterns; an out-degree of all outputs is an ordinary linear layer."""
    generator = np.random.default_rng(seed)
    layers: list[nn.Module] = []
    for inputs, outputs, degree in zip(mlp.layers[:-1], mlp.layers[1:], mlp.out_degrees, strict=True):
        if degree == outputs:
            layers.append(nn.Linear(inputs, outputs))
        else:
            pattern = draw(Junction(inputs, outputs, degree), generator)
            layers.append(ScatteredLinear(torch.from_numpy(pattern), inputs))
        for name, parameter in layers[-1].named_parameters():
            if name == "weight":
                nn.init.normal_(parameter, 0.0, sqrt(2 / parameter.shape[1]))
            else:
                nn.init.constant_(parameter, _BIAS)
        layers.append(nn.ReLU())
    return nn.Sequential(*layers[:-1])


def trained(mlp: Mlp, seed: int, train: Part, validation: Part) -> nn.Sequential:
    """Trains one network; returns it as it was at its best epoch on the validation part."""
    torch.manual_seed(seed)
    net = make(mlp, seed)
    optimiser = torch.optim.Adam(net.parameters(), LEARNING_RATE, fused=True)
    best, kept, waited = -1.0, net, 0
    for _ in range(MOST_EPOCHS):
        for rows in torch.randperm(len(train.labels)).split(BATCH):
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(net(train.images[rows]), train.labels[rows]).backward()  # type: ignore[no-untyped-call]  # torch's backward has no types
            optimiser.step()
        reached, waited = accuracy(net, validation), waited + 1
        if reached > best:
            best, kept, waited = reached, copy.deepcopy(net), 0
        if waited == PATIENCE:
            break
    return kept


@torch.no_grad()
def accuracy(net: nn.Module, part: Part) -> float:
    """In percent."""
    return 100 * float((net(part.images).argmax(1) == part.labels).float().mean())


@dataclass(frozen=True)
class Result:
    """One network over all seeds; accuracies in percent, one per seed."""

    network: Mlp
    stored: Stored
    validation: tuple[float, ...]
    test: tuple[float, ...]


def run(mlp: Mlp, seeds: Sequence[int], data: tuple[Part, Part, Part]) -> Result:
    """Trains and judges a network once per seed."""
    train, validation, test = data
    nets = [trained(mlp, seed, train, validation) for seed in seeds]
    return Result(
        mlp,
        stored(nets[0]),
        tuple(accuracy(net, validation) for net in nets),
        tuple(accuracy(net, test) for net in nets),
    )


def refusal() -> str:
    """What an inadmissible out-degree is answered with."""
    try:
        Junction(*_INADMISSIBLE)
    except UserError as error:
        return str(error)
    raise AssertionError(f"{_INADMISSIBLE} is admissible")


def page(results: Sequence[Result], sizes: tuple[int, int, int], about: str) -> str:
    """The page."""
    rows = []
    for one in results:
        kept = one.stored
        bytes_ = kept.weights * 4 + kept.index_bytes
        dense = kept.dense_weights * 4
        rows.append(
            f"| `{one.network.name}` | {one.network.note} | {kept.weights:,} | {kept.index_entries:,} | {bytes_:,} "
            f"| {dense / bytes_:.1f}x | {kept.dense_weights / kept.weights:.1f}x | {Spread(one.validation).text()} "
            f"| {Spread(one.test).text()} |"
        )
    n_train, n_validation, n_test = sizes
    return f"""# Predefined sparsity on digits

The MLPs of the predefined-sparsity papers beside dense ones, on scikit-learn's digits: 1,797 images of 8x8, enlarged to
28x28 (as the board resizes) and padded with 16 zeros to the papers' 800 inputs; {n_train} to train, {n_validation} to
validate, {n_test} to test, split once, by class. `fo` are the out-degrees; a pattern is drawn once per seed, before
training. The epoch is chosen on the validation part. Accuracy in percent: mean and standard deviation over
{len(results[0].test)} seeds.

| network | | weights | indices | bytes, indices counted | storage | compute | validation | test |
|---|---|---:|---:|---:|---:|---:|---:|---:|
{chr(10).join(rows)}

*Storage* and *compute* are what the dense network of the same layers takes over what this one takes: float32 weights
and indices in bytes, and weights, each of which is one multiply-accumulate. Biases, the same in both, are left out. One
test image is {100 / n_test:.2f} points. These digits are fewer and easier than MNIST; the papers' own accuracies are no
measure for them. The narrow network does not train reliably under this setting; why was not examined.

A junction whose degrees are not whole numbers is refused:

```
{refusal()}
```

{about}

Made by `python benchmarks/methods/digits.py`; every seed's figures are in [data/digits.json](data/digits.json).
"""


def main() -> None:
    """Trains, writes."""
    asked = arguments(__doc__ or "")
    seeds = range(1 if asked.quick else _SEEDS)
    torch.set_num_threads(1)
    started = time.monotonic()
    data = parts()
    results = []
    for mlp in NETWORKS:
        results.append(run(mlp, seeds, data))
        print(f"{mlp.name}: {Spread(results[-1].test).text()} ({time.monotonic() - started:.0f} s)", flush=True)
    stamp = take_stamp(seeds)
    train, validation, test = (len(part.labels) for part in data)
    (asked.pages / "data").mkdir(parents=True, exist_ok=True)
    raw = {"stamp": asdict(stamp), "results": [asdict(one) for one in results]}
    (asked.pages / "data" / "digits.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    text = page(results, (train, validation, test), paragraph(stamp))
    (asked.pages / "digits.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
