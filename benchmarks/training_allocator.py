"""What does `splitboard.zoo.training.keep_freed_memory` do for training on a CPU?

Shows images per second of the training step of the demo's model (224x224, batch 32) with the default allocator and with
glibc told to keep freed memory. The setting holds for a whole process, so each variant runs in processes of its own, in
turn. The images are noise: a step costs the same whatever they show.

Usage: python benchmarks/training_allocator.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from output import ratio, show

from splitboard.zoo import elpv
from splitboard.zoo.training import keep_freed_memory

BATCH, SIZE = 32, 224


def images_per_second(steps: int, threads: int) -> float:
    """Trains on noise in this process; the first step is discarded."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = elpv.lite0().train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = torch.rand(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    wanted = {task: torch.randint(len(names), (BATCH,)) for task, names in elpv.TASKS.items()}
    start = 0.0
    for step in range(steps + 1):
        if step == 1:
            start = time.perf_counter()
        logits = model(images)
        loss = torch.stack([F.cross_entropy(logits[task], wanted[task]) for task in wanted]).sum()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
    return BATCH * steps / (time.perf_counter() - start)


def in_a_process(variant: str, steps: int, threads: int) -> float:
    """`images_per_second` of one variant in a fresh process."""
    argv = [sys.executable, __file__, "--variant", variant, "--steps", str(steps), "--threads", str(threads)]
    return float(subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    """Measures and prints; with `--variant` it is one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="per process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--variant", choices=["default", "kept"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant is not None:
        if options.variant == "kept":
            keep_freed_memory()
        print(images_per_second(options.steps, options.threads))
        return
    speeds: dict[str, list[float]] = {"default": [], "kept": []}
    for _ in range(options.rounds):
        for variant, found in speeds.items():
            found.append(in_a_process(variant, options.steps, options.threads))
    rows = [
        {"freed memory": name, "images/s": float(np.median(found)), "over default": ratio(found, speeds["default"])}
        for name, found in speeds.items()
    ]
    about = (
        f"medians of {options.rounds} interleaved processes of {options.steps} steps, batch {BATCH}, {SIZE}x{SIZE}, "
        f"{options.threads} threads; 95 % bootstrap interval of the ratio"
    )
    show(rows, f"torch {torch.__version__}", about, as_json=options.json)


if __name__ == "__main__":
    main()
