"""Fits an early exit: a linear head on the pooled values of one tensor of a trained model, which stays as it is.

Multinomial logistic regression on standardised features; the strength of its L2 penalty is chosen by cross-validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from export.graph import Graph
from export.reference import optimised_session
from splitboard.contract.errors import UserError

FOLDS = 5
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""What is tried for scikit-learn's ``C``: the smaller, the smaller the weights."""

IMAGE_RANK = 4
_MOST_ITERATIONS = 10_000


@dataclass(frozen=True)
class Fitted:
    """A linear head.

    Attributes:
        weight: ``[classes, features]``, float32, for features as the model makes them.
        bias: ``[classes]``, float32.
        inverse_penalty: scikit-learn's ``C`` that was chosen.
        accuracy: on the folds that were left out, with it; a share.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    inverse_penalty: float
    accuracy: float


def features(
    graph: Graph, tensors: Sequence[str], images: Iterable[NDArray[np.float32]], on_image: Callable[[int], None]
) -> dict[str, NDArray[np.float32]]:
    """What a head sees of some tensors: the mean over the positions of an image-like one, else its values.

    Args:
        graph: the model, one image in.
        tensors: of it.
        images: normalised, each ``[1, c, h, w]``.
        on_image: called with the number of images done.

    Returns:
        ``[n, features]`` by tensor.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tensors)
    session = optimised_session(model)
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in tensors}
    for done, image in enumerate(images, 1):
        for name, value in zip(tensors, session.run(list(tensors), {graph.inputs[0]: image}), strict=True):
            found[name].append(value.mean((2, 3)) if value.ndim == IMAGE_RANK else value.reshape(1, -1))
        on_image(done)
    return {name: np.concatenate(values) for name, values in found.items()}


def fit(values: NDArray[np.float32], labels: NDArray[np.int64], classes: Sequence[str], task: str) -> Fitted:
    """Fits a head.

    Args:
        values: features, ``[n, features]``.
        labels: true classes, ``[n]``.
        classes: names of all of them.
        task: name.

    Raises:
        UserError: a class has too few images, or the model does not have it.
    """
    _check(labels, classes, task)
    # The seed orders the folds; the penalty is judged by the likelihood, since a threshold needs honest probabilities.
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MOST_ITERATIONS)),
        {"logisticregression__C": INVERSE_PENALTIES},
        scoring={"likelihood": "neg_log_loss", "accuracy": "accuracy"},
        refit="likelihood",
        cv=StratifiedKFold(FOLDS, shuffle=True, random_state=0),
    )
    search.fit(values.astype(np.float64), labels)
    scaler, model = search.best_estimator_[0], search.best_estimator_[1]
    weight, bias = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    if len(classes) == 2:  # one score then, that of the second class against the first
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    return Fitted(
        weight.astype(np.float32),
        bias.astype(np.float32),
        float(model.C),
        float(search.cv_results_["mean_test_accuracy"][search.best_index_]),
    )


def _check(labels: NDArray[np.int64], classes: Sequence[str], task: str) -> None:
    strange = labels[(labels < 0) | (labels >= len(classes))]
    if len(strange):
        raise UserError(
            f'task "{task}" has no class "{strange[0]}", which {len(strange)} labels name',
            [f"classes of {task} are numbered from 0 to {len(classes) - 1}"],
        )
    for number, name in enumerate(classes):
        count = int((labels == number).sum())
        if count < FOLDS:
            raise UserError(
                f'task "{task}" has {count} images of the class "{name}"',
                [f"give {FOLDS} or more of every class: each fold of the cross-validation needs one"],
            )
