"""Images from files, arrays, videos and callables; what is wrong with a source is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime_edge.loop.sources import open_source
from splitboard.contract.errors import UserError
from splitboard.contract.samples import load_samples, save_samples

IMAGES = np.random.default_rng(1).integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)


def test_an_npz_with_labels(tmp_path: Path) -> None:
    save_samples(tmp_path / "a.npz", IMAGES, {"kind": np.array([1, 0, 1, 1])})
    found = list(open_source(str(tmp_path / "a.npz"), 3))
    np.testing.assert_array_equal([frame.image for frame in found], IMAGES)
    assert [frame.labels for frame in found] == [{"kind": 1}, {"kind": 0}, {"kind": 1}, {"kind": 1}]
    assert tuple(frame.name for frame in found) == load_samples(tmp_path / "a.npz", 3).hashes


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_images_of_any_sizes(tmp_path: Path, channels: int) -> None:
    (tmp_path / "sub").mkdir()
    Image.fromarray(IMAGES[0]).save(tmp_path / "b.png")
    Image.fromarray(IMAGES[1][:7]).save(tmp_path / "sub" / "a.bmp")
    found = list(open_source(str(tmp_path), channels))
    assert [frame.name for frame in found] == ["b.png", "sub/a.bmp"]
    assert [frame.image.shape for frame in found] == [(20, 30, channels), (7, 30, channels)]
    if channels == 3:
        np.testing.assert_array_equal(found[0].image, IMAGES[0])
    assert all(frame.read_ns > 0 for frame in found)


def test_a_video(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "clip.avi"
    flat = np.array([[200, 30, 40], [20, 210, 60]], np.uint8)  # RGB
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for colour in flat:
        writer.write(np.full((48, 64, 3), colour[::-1], np.uint8))
    writer.release()
    found = list(open_source(str(path), 3))
    assert [frame.name for frame in found] == [f"{path}#0", f"{path}#1"]
    for frame, colour in zip(found, flat, strict=True):
        assert frame.image.shape == (48, 64, 3)
        np.testing.assert_allclose(frame.image.mean((0, 1)), colour, atol=6)  # what JPEG leaves of it
    grey = next(open_source(str(path), 1)).image
    assert grey.shape == (48, 64, 1)
    # ITU-R BT.601 luma, OpenCV's definition of grey.
    np.testing.assert_allclose(grey.mean(), flat[0] @ [0.299, 0.587, 0.114], atol=4)


def write_module(folder: Path, text: str) -> None:
    package = folder / "camera_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("import numpy as np\n" + text)


def test_a_callable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", ["/nowhere", *__import__("sys").path])
    write_module(
        tmp_path, "def frames():\n    yield np.zeros((4, 6, 1), np.uint8)\n    yield np.ones((5, 6, 1), np.uint8)\n"
    )
    found = list(open_source("camera_of_mine:frames", 1, tmp_path))
    assert [frame.image.shape for frame in found] == [(4, 6, 1), (5, 6, 1)]
    assert [frame.name for frame in found] == ["camera_of_mine:frames#0", "camera_of_mine:frames#1"]
    with (tmp_path / "camera_of_mine" / "__init__.py").open("a") as file:
        file.write("def none():\n    return None\ndef breaks():\n    yield np.zeros((4, 6, 1), np.uint8)\n")
        file.write("    raise RuntimeError('unplugged')\n")
    __import__("importlib").reload(__import__("camera_of_mine"))
    with pytest.raises(UserError, match=r'failed with "TypeError: .*" at image 0'):
        list(open_source("camera_of_mine:none", 1, tmp_path))
    with pytest.raises(UserError, match='failed with "RuntimeError: unplugged" at image 1'):
        list(open_source("camera_of_mine:breaks", 1, tmp_path))
    with pytest.raises(UserError, match='has no callable "other"'):
        list(open_source("camera_of_mine:other", 1, tmp_path))
    with pytest.raises(UserError, match=r'gave "uint8 \[4, 6, 1\]"'):
        list(open_source("camera_of_mine:frames", 3, tmp_path))


def test_one_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(IMAGES[0]).save(tmp_path / name)
    frames = open_source(str(tmp_path), 3)
    next(frames)
    (tmp_path / "b.png").write_bytes(b"not an image any more")
    with pytest.raises(UserError, match="is not a readable image"):
        next(frames)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nowhere", 'no images at "nowhere"'),
        ("nowhere.mp4", 'no video at "nowhere.mp4"'),
        ("no_such_module_at_all:frames", "cannot be imported"),
        ("camera:77", 'OpenCV cannot open "camera:77"'),
    ],
)
def test_what_is_no_source(text: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if text.startswith("camera"):
        pytest.importorskip("cv2")
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    with pytest.raises(UserError) as caught:
        list(open_source(text, 3, tmp_path))
    assert words in caught.value.message
    assert caught.value.tries


def test_labels_are_not_read_from_images_alone(tmp_path: Path) -> None:
    images: NDArray[np.uint8] = IMAGES[..., :1]
    save_samples(tmp_path / "a.npz", images, {})
    assert [frame.labels for frame in open_source(str(tmp_path / "a.npz"), 1)] == [{}] * 4
