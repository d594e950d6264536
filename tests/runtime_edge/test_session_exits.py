"""Tasks exit one by one: what is sure is answered on the board, and the server is asked for the rest only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from references import References, edge, references
from serving import Running, running_server

from runtime_edge.loop.session import Manners
from splitboard.contract.bundle import Bundle, bundle_sha256, load_bundle
from splitboard.contract.exits import SCHEMA_VERSION, ExitRule, ExitRules
from splitboard.contract.preprocess import edge_image, prepare
from splitboard.contract.samples import load_samples

SURE = {"shape": 0.9, "colour": 0.7}


@pytest.fixture(scope="module")
def bundle(exit_bundle: Path) -> Bundle:
    return load_bundle(exit_bundle)


@pytest.fixture(scope="module")
def images(exit_samples: Path) -> NDArray[np.uint8]:
    return load_samples(exit_samples / "held.npz", 1).images[:60]


@pytest.fixture(scope="module")
def expected(exit_bundle: Path, bundle: Bundle, images: NDArray[np.uint8]) -> References:
    return references(exit_bundle, bundle, images)


@pytest.fixture(scope="module")
def server(exit_bundle: Path) -> Iterator[Running]:
    with running_server(exit_bundle) as running:
        yield running


def rules(folder: Path, bundle: Bundle, split: str) -> ExitRules:
    """One exit of each task, sure above a share that some images pass and some do not."""
    chosen = {one.task: one for one in bundle.exits_of(bundle.split(split))}
    rule = ExitRule(split, "", "", "max_softmax", 0.0, None, 0.0, 0.95, 0, 0.5, 1, 1, 1, 1, 0)
    made = [
        dataclasses.replace(rule, output=one.output, task=task, threshold=SURE[task]) for task, one in chosen.items()
    ]
    return ExitRules(SCHEMA_VERSION, bundle_sha256(folder), "", tuple(made))


def by_interpreter(
    folder: Path, bundle: Bundle, split: str, image: NDArray[np.uint8]
) -> dict[str, NDArray[np.float64]]:
    """Probabilities of every output of the edge half, straight from the interpreter."""
    runner = Interpreter(model_path=str(folder / bundle.edge_files[0])).get_signature_runner(
        bundle.split(split).edge_signature
    )
    found = {}
    for name, stored in runner(
        image=edge_image(prepare(image[None], bundle.preprocessing), bundle.input_table())
    ).items():
        scale, zero_point = runner.get_output_details()[name]["quantization"]
        real = (stored.astype(np.float64).reshape(-1) - zero_point) * scale
        powers = np.exp(real - real.max())
        found[name] = powers / powers.sum()
    return found


def test_each_task_exits_where_its_own_head_is_sure(
    exit_bundle: Path, bundle: Bundle, server: Running, images: NDArray[np.uint8], expected: References
) -> None:
    split = bundle.splits[1].id
    used = rules(exit_bundle, bundle, split)
    outputs = {rule.task: rule.output for rule in used.rules}
    seen = set()
    with edge(exit_bundle, server.url, split, Manners(rules=used)) as one:
        for number, image in enumerate(images):
            done = one.answer(image)
            expected.check(number, done)
            heads = by_interpreter(exit_bundle, bundle, split, image)
            for task, answer in done.tasks.items():
                largest = heads[outputs[task]].max()
                if abs(largest - SURE[task]) > 1e-6:
                    assert answer.by == ("exit" if largest > SURE[task] else "server"), (number, task, largest)
                if answer.by == "exit":
                    powers = np.exp(np.asarray(answer.scores) - max(answer.scores or []))
                    np.testing.assert_allclose(powers / powers.sum(), heads[outputs[task]], rtol=1e-5)
            asked = [task for task, answer in done.tasks.items() if answer.by == "server"]
            assert (done.answer is None) == (not asked)
            seen.add(tuple(asked))
    assert {(), ("shape",), ("colour",)} <= seen  # both exited, and each of them alone


def test_without_rules_nothing_exits(
    exit_bundle: Path, bundle: Bundle, server: Running, images: NDArray[np.uint8]
) -> None:
    with edge(exit_bundle, server.url, bundle.splits[1].id, Manners()) as one:
        done = one.answer(images[0])
    assert {answer.by for answer in done.tasks.values()} == {"server"}


def test_without_a_server_unsure_exits_answer_too(exit_bundle: Path, bundle: Bundle, images: NDArray[np.uint8]) -> None:
    split = bundle.splits[1].id
    with edge(exit_bundle, "http://127.0.0.1:9", split, Manners(fallback="exit")) as one:
        for image in images[:5]:
            done = one.answer(image)
            assert done.failure is not None
            assert {answer.by for answer in done.tasks.values()} == {"exit"}
