"""What do the memory format and the fused AdamW do for a training step on a CPU?

Shows milliseconds per step of `splitboard train`'s loop (batch 32, one thread, the paper's heads, two tasks) beside
channels last with AdamW's separate loops. The four variants run in turn within every round, on the same noise.

Usage: python benchmarks/training_step.py [--networks resnet18@64,mobilenet-v3-small@64] [--rounds 10]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from output import ratio, show

from splitboard.zoo.multitask import Flat, MultiTaskNet
from splitboard.zoo.networks import Network, make
from splitboard.zoo.training import keep_freed_memory

BATCH = 32
TASKS = (("scale", 8), ("shape", 4))
FORMATS = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}
BASELINE = "channels last, AdamW"


class Variant:
    """A network in training."""

    def __init__(self, network: Network, memory_format: torch.memory_format, *, fused: bool) -> None:
        torch.manual_seed(0)
        # torch declares memory_format on the tensor overload only.
        self.net: MultiTaskNet = make(network).train().to(memory_format=memory_format)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(self.net.parameters(), fused=fused)
        self.images = torch.rand(BATCH, 3, network.size, network.size).contiguous(memory_format=memory_format)
        self.wanted = {task: torch.randint(n, (BATCH,)) for task, n in TASKS}

    def step_ms(self) -> float:
        """Takes one step."""
        start_ns = time.perf_counter_ns()
        logits = self.net(self.images)
        loss = torch.stack([F.cross_entropy(logits[task], truth) for task, truth in self.wanted.items()]).sum()
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimiser.step()
        return (time.perf_counter_ns() - start_ns) / 1e6


def measure(network: Network, rounds: int) -> dict[str, list[float]]:
    """Milliseconds by variant, one per round behind a first that is dropped."""
    variants = {
        f"{name}, {'fused AdamW' if fused else 'AdamW'}": Variant(network, memory_format, fused=fused)
        for name, memory_format in FORMATS.items()
        for fused in (False, True)
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-1, rounds):
        for name, variant in variants.items():
            ms = variant.step_ms()
            if number >= 0:
                times[name].append(ms)
    return times


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", default="resnet18@48,mobilenet-v3-small@64,efficientnet-lite0@160")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    rows = []
    for text in options.networks.split(","):
        backbone, _, size = text.partition("@")
        times = measure(Network(backbone, TASKS, int(size), Flat()), options.rounds)
        rows += [
            {"network": text, "variant": name, "ms": float(np.median(own)), "faster": ratio(times[BASELINE], own)}
            for name, own in times.items()
        ]
    about = f"medians of {options.rounds} interleaved rounds, batch {BATCH}, one thread; 95 % bootstrap interval"
    show(rows, f"torch {torch.__version__}", about, as_json=options.json)


if __name__ == "__main__":
    main()
