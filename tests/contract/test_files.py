"""Samples, records and folders: read strictly, written whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitboard.contract.errors import UserError
from splitboard.contract.folder import new_folder
from splitboard.contract.record import read_records, write_records
from splitboard.contract.samples import load_samples, save_samples


def test_a_folder_of_images_and_an_npz_are_the_same_samples(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
    for index, pixels in enumerate(images):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    save_samples(tmp_path / "all.npz", images, {"task": np.arange(5)})
    folder, archive = load_samples(tmp_path, 3), load_samples(tmp_path / "all.npz", 3)
    np.testing.assert_array_equal(folder.images, archive.images)
    assert folder.hashes == archive.hashes == tuple(hashlib.sha256(i.tobytes()).hexdigest() for i in images)
    assert folder.sha256 == archive.sha256
    assert archive.labels["task"].tolist() == [0, 1, 2, 3, 4]


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    np.savez(tmp_path / "bad.npz", images=np.array([Payload()], dtype=object))
    with pytest.raises(UserError, match="not a readable"):
        load_samples(tmp_path / "bad.npz", 1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"pictures": np.zeros((1, 4, 4), np.uint8)}, 'no array named "images"'),
        ({"images": np.zeros((1, 4, 4), np.float32)}, 'as "float32"'),
        ({"images": np.zeros((0, 4, 4, 1), np.uint8)}, '"[0, 4, 4, 1]"'),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, 'of "3" channels'),
        ({"images": np.zeros((2, 4, 4, 1), np.uint8), "labels.t": np.zeros(3, int)}, 'task "t"'),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError) as error:
        load_samples(tmp_path / "x.npz", 1)
    assert said in error.value.message


def test_truncated_and_missing_archives_are_refused(tmp_path: Path) -> None:
    save_samples(tmp_path / "x.npz", np.zeros((3, 4, 4, 1), np.uint8), {})
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("x.npz", "none.npz"):
        with pytest.raises(UserError, match=name):
            load_samples(tmp_path / name, 1)


def test_a_record_line_that_is_not_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text('{"schema_version": 1}\n')
    with pytest.raises(UserError, match=r"runs\.jsonl:1.*is missing"):
        read_records(tmp_path / "runs.jsonl")
    (tmp_path / "runs.jsonl").write_text("{not json\n")
    with pytest.raises(UserError, match=r"runs\.jsonl:1.*is not a run record"):
        read_records(tmp_path)


def test_a_broken_write_leaves_the_old_records(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("old\n")
    with pytest.raises(TypeError):
        write_records(path, [object()])  # type: ignore[list-item]
    assert path.read_text() == "old\n"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def write(content: str, *, fail: bool) -> None:
        with new_folder(target, "marker.json") as folder:
            (folder / "marker.json").write_text(json.dumps(content))
            assert not target.exists() or (target / "marker.json").read_text() != json.dumps(content)
            if fail:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write("first", fail=True)
    assert list(tmp_path.iterdir()) == []
    write("second", fail=False)
    with pytest.raises(KeyboardInterrupt):
        write("third", fail=True)
    assert json.loads((target / "marker.json").read_text()) == "second"
    write("fourth", fail=False)
    assert json.loads((target / "marker.json").read_text()) == "fourth"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_of_someone_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="was not made by this command"), new_folder(tmp_path, "marker.json"):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
