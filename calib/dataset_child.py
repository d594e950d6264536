"""Runs in a process of its own: takes images from the user's iterable and writes each to a file.

Started by `calib.dataset` as a plain script under ``python -I``, so nothing of the user's is imported into the host
process. A request is one JSON object on standard input. Exit code 3 with ``error.json`` where their code was wrong.
"""

from __future__ import annotations

import importlib
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from export.child_refusals import Refused, first_line, user_line

sys.path.pop()
for _name in [name for name in sys.modules if name.partition(".")[0] == "export"]:
    del sys.modules[_name]  # theirs may be called so

_FORM = "write it as package.module:name of an iterable, or of a function that returns one"


def images(source: str) -> Any:
    """The user's iterable."""
    module_name, _, attribute = source.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise Refused(f'"{source}" cannot be imported: {error}') from error
    found = found() if callable(found) and not hasattr(found, "__iter__") else found
    if not hasattr(found, "__iter__"):
        raise Refused(f'"{source}" is "{type(found).__name__}", not an iterable of images')
    return found


def checked(item: Any, number: int, channels: int) -> tuple[Any, str]:
    """One image and its label."""
    image, label = item if isinstance(item, tuple) and len(item) == 2 else (item, "")
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != channels or pixels.size == 0:
        raise Refused(
            f'image {number} is "{pixels.dtype} {list(pixels.shape)}", the model takes uint8 [h, w, {channels}]'
        )
    return pixels, str(label)


def main() -> int:
    """Reads the request and writes ``<number>.npy`` and ``labels.json``."""
    request = json.loads(sys.stdin.read())
    out, folder = Path(request["out"]), request["folder"]
    sys.path.insert(0, folder)
    labels: list[str] = []
    try:
        for number, item in enumerate(islice(images(request["source"]), request["most"])):
            pixels, label = checked(item, number, request["channels"])
            np.save(out / f"{number}.npy", np.ascontiguousarray(pixels), allow_pickle=False)
            labels.append(label)
        if not labels:
            raise Refused(f'"{request["source"]}" gives "0" images')
    except (Exception, SystemExit) as error:  # the user's code may raise anything; its line is what helps them
        at = user_line(error, Path(folder))
        where = "" if at is None else f' in "{at}"'
        message = str(error) if isinstance(error, Refused) else f"{type(error).__name__}{where}: {first_line(error)}"
        tries = [_FORM, "name the folder that your package lies in with --path"]
        (out / "error.json").write_text(json.dumps({"message": message, "tries": tries}), encoding="utf-8")
        return 3
    (out / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
