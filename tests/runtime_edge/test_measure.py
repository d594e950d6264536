from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from serving import Running

from runtime_edge.bench.energy import measure_energy
from runtime_edge.bench.environment import read_environment
from runtime_edge.bench.measure import Conditions, Timings, check_spans, measure, records, rotated
from runtime_edge.engines.engine import FakeEngine
from runtime_edge.engines.litert import LiteRtEngine
from runtime_edge.link.link import Link
from runtime_edge.link.sender import Sender
from runtime_edge.meters.meter import NoMeter
from runtime_edge.pipeline import Inference, Pipeline
from runtime_edge.selfcheck import selfcheck
from splitboard.contract.bundle import Bundle, Split, bundle_sha256, load_bundle
from splitboard.contract.errors import Inconclusive, UserError
from splitboard.contract.preprocess import resize
from splitboard.contract.record import SPANS, read_records, write_records
from splitboard.contract.samples import Samples, load_samples


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def samples(tiny_samples: Path) -> Samples:
    return load_samples(tiny_samples, channels=1)


def ignore(done: int, total: int) -> None:
    pass


def first(samples: Samples, n: int) -> Samples:
    return Samples(samples.images[:n], {task: v[:n] for task, v in samples.labels.items()}, samples.hashes[:n])


def local_pipeline(bundle: Bundle, engine: FakeEngine) -> Pipeline:
    return Pipeline(bundle, "0" * 64, bundle.splits[-1:], engine, None)


def test_a_run_through_all_splits(
    server: Running, tiny_bundle: Path, bundle: Bundle, samples: Samples, tmp_path: Path
) -> None:
    few, sha256 = first(samples, 12), bundle_sha256(tiny_bundle)
    progress: list[tuple[int, int]] = []
    with LiteRtEngine(tiny_bundle, bundle, bundle.splits) as engine, Link(server.url) as link:
        pipeline = Pipeline(bundle, sha256, bundle.splits, engine, Sender(link))
        timings = measure(pipeline, bundle.splits, few.images, 3, lambda *at: progress.append(at))
        energy = measure_energy(pipeline, bundle.splits, few.images, NoMeter("no sensor"), ignore)
        here = read_environment(engine.name)
        conditions = Conditions(bundle, sha256, "host", True, engine.name, 1, 3)
    made = records(conditions, bundle.splits, few, timings, energy, here, here)
    write_records(tmp_path / "runs.jsonl", made)
    assert read_records(tmp_path / "runs.jsonl") == made
    assert progress == [(i, 60) for i in range(1, 61)]
    assert [record.split for record in made] == [split.id for split in bundle.splits]
    assert len({record.run_id for record in made}) == 1
    for record, split in zip(made, bundle.splits, strict=True):
        assert record.sample_ids == few.hashes
        assert record.labels == {task: tuple(values.tolist()) for task, values in few.labels.items()}
        assert record.payload_bytes == split.payload_bytes
        assert record.energy_reason == "no sensor"
        assert record.windows == record.idle_windows == ()
        assert tuple(record.spans_ns) == SPANS
        check_phases(record.spans_ns, record.total_ns, split)
    check_scores(tiny_bundle, bundle, few, made[0].outputs)
    assert made[0].engine == "none"
    assert made[1].engine.startswith("ai-edge-litert")


def check_phases(spans_ns: dict[str, tuple[int, ...]], total_ns: tuple[int, ...], split: Split) -> None:
    sums = [sum(one) for one in zip(*spans_ns.values(), strict=True)]
    assert len(sums) == 12
    assert all(found <= total for found, total in zip(sums, total_ns, strict=True))
    # One sample may be interrupted between two readings of the clock; most may not.
    assert statistics.median(found / total for found, total in zip(sums, total_ns, strict=True)) >= 0.95
    absent = {"read", "encode"}  # the images are in memory, and nothing is compressed
    if split.is_local:
        absent |= {"serialise", "link", "queue", "decode", "server"}
    elif split.is_remote:
        absent |= {"edge"}
    for span, values in spans_ns.items():
        assert all((value == 0) == (span in absent) for value in values), span


def check_scores(folder: Path, bundle: Bundle, samples: Samples, outputs: dict[str, Any]) -> None:
    """Remote only is the server graph on the resized pixels, so it can be compared to the bit."""
    session = onnxruntime.InferenceSession(folder / str(bundle.splits[0].server), providers=["CPUExecutionProvider"])
    for i, image in enumerate(samples.images):
        expected = session.run(list(outputs), {"image": resize(image[None], 32, 32)})
        for task, scores in zip(outputs, expected, strict=True):
            assert outputs[task][i] == tuple(scores[0].tolist())


def test_all_splits_agree(server: Running, tiny_bundle: Path, bundle: Bundle, samples: Samples) -> None:
    with LiteRtEngine(tiny_bundle, bundle, bundle.splits) as engine, Link(server.url) as link:
        pipeline = Pipeline(bundle, bundle_sha256(tiny_bundle), bundle.splits, engine, Sender(link))
        for image in samples.images[:5]:
            remote = pipeline.infer(bundle.splits[0], image).scores
            for split in bundle.splits[1:]:
                for task, scores in pipeline.infer(split, image).scores.items():
                    # Three times what INT8 was off on the golden inputs.
                    assert np.allclose(scores, remote[task], atol=3 * bundle.golden_tolerance[task]), split.id


def test_the_order_rotates_from_image_to_image(bundle: Bundle, samples: Samples) -> None:
    assert ["".join(rotated("abc", i)) for i in range(4)] == ["abc", "bca", "cab", "abc"]  # type: ignore[arg-type]


def test_the_warm_up_is_discarded(bundle: Bundle, samples: Samples) -> None:
    seen: list[int] = []

    def run(split: Split, image: Any) -> dict[str, Any]:
        seen.append(len(seen))
        return {"shape": np.array([[len(seen), 0]], np.float32), "colour": np.zeros((1, 3), np.float32)}

    with FakeEngine(bundle, bundle.splits, run) as engine:
        found = measure(local_pipeline(bundle, engine), bundle.splits[-1:], samples.images[:4], 7, ignore)
    (timings,) = found.values()
    assert len(seen) == 11
    assert [row[0] for row in timings.outputs["shape"]] == [8, 9, 10, 11]
    assert len(timings.total_ns) == 4


def test_the_time_of_the_engine_is_in_its_span(bundle: Bundle, samples: Samples) -> None:
    def run(split: Split, image: Any) -> dict[str, Any]:
        time.sleep(0.02)
        return {"shape": np.zeros((1, 2), np.float32), "colour": np.zeros((1, 3), np.float32)}

    with FakeEngine(bundle, bundle.splits, run) as engine:
        one = local_pipeline(bundle, engine).infer(bundle.splits[-1], samples.images[0])
    assert one.spans_ns is not None
    assert 20_000_000 <= one.spans_ns[SPANS.index("edge")] <= one.total_ns


def test_the_engine_gets_the_declared_crop(bundle: Bundle, samples: Samples) -> None:
    seen: list[Any] = []

    def run(split: Split, image: Any) -> dict[str, Any]:
        seen.append(image)
        return {"shape": np.zeros((1, 2), np.float32), "colour": np.zeros((1, 3), np.float32)}

    spec, wide = replace(bundle.preprocessing, resize_shorter=34), samples.images[0][:, 3:33]
    with FakeEngine(bundle, bundle.splits, run) as engine:
        local_pipeline(replace(bundle, preprocessing=spec), engine).infer(bundle.splits[-1], wide)
    pixels = resize(wide[None], 45, 34)[
        :, 6:38, 1:33
    ]  # 34 * 40 / 30 rows, of which 6.5 are cut off, to the even number
    real = (pixels / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    stored = np.rint(real / float(bundle.edge_input.scale or 0)) + int(bundle.edge_input.zero_point or 0)
    np.testing.assert_array_equal(seen, [np.clip(stored, -128, 127).astype(np.int8)])


def test_golden_images_are_prepared_already(tiny_bundle: Path, bundle: Bundle, tmp_path: Path) -> None:
    spec = replace(bundle.preprocessing, resize_shorter=40)  # would cut them again
    with LiteRtEngine(tiny_bundle, bundle, bundle.splits[-1:]) as engine:
        found = selfcheck(tiny_bundle, replace(bundle, preprocessing=spec), engine)
        assert found.passed
        assert max(found.error.values()) > 0
        with pytest.raises(UserError, match=r'has uint8 images of "\[32, 32, 1\]"'):
            selfcheck(tiny_bundle, replace(bundle, preprocessing=replace(spec, height=31)), engine)


def test_a_split_that_needs_a_server_says_so(bundle: Bundle) -> None:
    with FakeEngine(bundle, bundle.splits) as engine, pytest.raises(UserError, match='no server given for "s00, s03'):
        Pipeline(bundle, "0" * 64, bundle.splits, engine, None)


def test_a_server_that_does_not_tell_its_time(bundle: Bundle) -> None:
    with pytest.raises(UserError, match='server of split "s00" sends no Server-Timing'):
        Timings().add(Inference(None, 1, {}), bundle.splits[0])


def timings_of(*samples: tuple[int, int]) -> Timings:
    """Of ``(edge_ns, total_ns)``; the other spans took no time."""
    timings = Timings()
    for edge_ns, total_ns in samples:
        for span, durations_ns in timings.spans_ns.items():
            durations_ns.append(edge_ns if span == "edge" else 0)
        timings.total_ns.append(total_ns)
    return timings


@pytest.mark.parametrize("samples", [[(94, 100)], [(106, 100)], [(94, 100), (94, 100), (100, 100)]])
def test_spans_that_do_not_explain_the_total(samples: list[tuple[int, int]]) -> None:
    with pytest.raises(Inconclusive, match=r'the spans of split "s07" miss "6\.0%"'):
        check_spans("s07", timings_of(*samples))


def test_a_pause_between_two_spans_of_one_sample() -> None:
    check_spans("s07", timings_of((99, 100), (99, 6000), (99, 100)))
