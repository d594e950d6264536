"""A bundle is whole or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest

from splitboard.contract.bundle import TensorSpec, bundle_sha256, load_bundle, unknown_split
from splitboard.contract.errors import UserError


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_every_file_is_in_the_manifest_with_its_hash(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    files = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    assert files == {artifact.path for artifact in bundle.artifacts} | {"manifest.json"}
    assert {"edge/edge.int8.tflite", "golden/golden.npz", "calibration/ranges.json"} <= files


def test_one_changed_byte_in_any_file_is_refused(copy: Path) -> None:
    for artifact in load_bundle(copy).artifacts:
        path = copy / artifact.path
        original = path.read_bytes()
        changed = bytearray(original)
        changed[len(changed) // 2] ^= 1
        path.write_bytes(changed)
        with pytest.raises(UserError, match="was changed since it was built"):
            load_bundle(copy)
        path.write_bytes(original)
    load_bundle(copy)


def test_a_missing_and_an_extra_file_are_refused(copy: Path) -> None:
    (copy / "edge" / "extra.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"extra\.bin.*not in the manifest"):
        load_bundle(copy)
    (copy / "edge" / "extra.bin").unlink()
    (copy / "golden" / "golden.npz").unlink()
    with pytest.raises(UserError, match=r'lacks the file "golden/golden.npz"'):
        load_bundle(copy)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd"])
def test_a_path_that_leaves_the_bundle_is_refused(copy: Path, path: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["artifacts"][0]["path"] = path
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="outside of itself"):
        load_bundle(copy)


def test_another_schema_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["schema_version"] = 99
    del manifest["exits"]  # another version has other keys: what is missing is not what is wrong
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match='bundle schema "99"'):
        load_bundle(copy)


def test_the_identity_changes_with_any_file(copy: Path, tiny_bundle: Path) -> None:
    assert bundle_sha256(copy) == bundle_sha256(tiny_bundle)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["artifacts"][0]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert bundle_sha256(copy) != bundle_sha256(tiny_bundle)


def test_an_unknown_split_names_the_nearest(tiny_bundle: Path) -> None:
    with pytest.raises(UserError) as error:
        load_bundle(tiny_bundle).split("s04")
    assert 'unknown split "s04"' in error.value.message
    assert error.value.tries[0] in ('"s03" is the nearest', '"s05" is the nearest')


def test_the_nearest_is_of_the_same_kind() -> None:
    known = ["s00", "s03", "m01", "s09"]
    assert unknown_split("s01", known, "bundle").tries[0] == '"s00" is the nearest'
    assert unknown_split("m09", known, "bundle").tries[0] == '"m01" is the nearest'
    assert unknown_split("x03", known, "bundle").tries == ("the bundle has: s00, s03, m01, s09",)


@pytest.mark.parametrize(
    ("number", "local"),
    [
        (0, ["shape"]),  # remote only has no edge half
        (1, ["weight"]),  # no task of the bundle
        (1, ["shape", "colour"]),  # nothing is left to the server
        (-1, ["shape"]),  # nobody answers the other
    ],
)
def test_a_task_that_no_half_or_that_both_answer_is_refused(copy: Path, number: int, local: list[str]) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"][number]["local_tasks"] = local
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf'split {manifest["splits"][number]["id"]} answer "{", ".join(local)}"'):
        load_bundle(copy)


def test_the_ends_answer_all_and_nothing(tiny_bundle: Path) -> None:
    splits = load_bundle(tiny_bundle).splits
    assert [split.local_tasks for split in splits] == [(), (), (), ("shape", "colour")]


@pytest.mark.parametrize(("dtype", "zero_point"), [("int8", -7), ("uint8", 130)])
def test_real_values_are_onnxs_dequantize_linear(dtype: str, zero_point: int) -> None:
    stored = np.arange(256).astype(dtype).reshape(1, 256)
    spec = TensorSpec("x", (1, 256), dtype, "NC", 0.0123, zero_point)
    node = onnx.helper.make_node("DequantizeLinear", ["x", "scale", "zero_point"], ["y"])
    inputs = {"x": stored, "scale": np.float32(0.0123), "zero_point": np.array(zero_point, dtype)}
    (expected,) = onnx.reference.ReferenceEvaluator(node).run(None, inputs)
    np.testing.assert_array_equal(spec.real(stored), expected, strict=True)


def test_real_values_without_a_scale_are_those_stored() -> None:
    stored = np.array([[1.5, -2.25]], np.float32)
    np.testing.assert_array_equal(TensorSpec("x", (1, 2), "float32", "NC").real(stored), stored, strict=True)


def test_payloads_are_the_tensors_bytes(tiny_bundle: Path) -> None:
    remote, *cuts, local = load_bundle(tiny_bundle).splits
    assert remote.payload_bytes == 32 * 32  # grey, one byte per pixel, after resizing
    assert [split.payload_bytes for split in cuts] == [16 * 16 * 16, 8 * 8 * 12]
    assert local.payload_bytes == 0
    assert [split.is_remote for split in (remote, *cuts, local)] == [True, False, False, False]
    assert [split.is_local for split in (remote, *cuts, local)] == [False, False, False, True]
