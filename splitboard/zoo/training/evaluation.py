"""What a trained network says of images, and how often it is right."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from splitboard.contract.preprocess import Preprocessing, normalise, prepare
from splitboard.zoo.data.dataset import Images, Part
from splitboard.zoo.multitask import MultiTaskNet


@torch.no_grad()
def predict(
    model: MultiTaskNet, images: Images, preprocessing: Preprocessing, batch: int = 64
) -> dict[str, NDArray[np.float32]]:
    """Logits of all outputs, ``{output: [n, classes]}``, in evaluation mode and as deployed, on the model's device.

    Args:
        model: is put into evaluation mode, and left in it.
        images: read batch by batch.
        preprocessing: from a source image to the model's input.
        batch: images at a time.
    """
    model.eval()
    device = next(model.parameters()).device
    found: dict[str, list[NDArray[np.float32]]] = {one.name: [] for one in model.outputs}
    for start in range(0, len(images), batch):
        pixels = images.read(np.arange(start, min(start + batch, len(images)), dtype=np.int64))
        inputs = torch.from_numpy(normalise(prepare(pixels, preprocessing), preprocessing)).to(device)
        for name, value in model(inputs).items():
            found[name].append(value.float().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def accuracies(model: MultiTaskNet, part: Part, preprocessing: Preprocessing) -> dict[str, float]:
    """Share of images of a part that each output, exits included, is right on."""
    logits = predict(model, part.images, preprocessing)
    return {one.name: float(np.mean(logits[one.name].argmax(axis=1) == part.labels[one.task])) for one in model.outputs}
