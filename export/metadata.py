"""Notes in an ONNX file itself, for whoever meets it without its folder."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto

PREFIX = "splitboard."


def describe(model: ModelProto, entries: Mapping[str, str]) -> None:
    """Writes entries to ``metadata_props``, in place; a key that is there already gets the new value.

    Args:
        model: to describe.
        entries: text by key, without `PREFIX`.
    """
    wanted = {f"{PREFIX}{key}": value for key, value in entries.items()}
    kept = [entry for entry in model.metadata_props if entry.key not in wanted]
    kept = [type(entry)(key=entry.key, value=entry.value) for entry in kept]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in wanted.items():
        model.metadata_props.add(key=key, value=value)
