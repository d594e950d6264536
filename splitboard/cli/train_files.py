"""What `splitboard train` writes beside the weights: the model spec, and Python that makes the network again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields

from splitboard.contract.preprocess import Preprocessing
from splitboard.zoo.multitask import Output
from splitboard.zoo.networks import Network

SPEC_BEGINNING = "# Model spec"
FACTORY_BEGINNING = '"""A network that splitboard train made'


def spec_text(preprocessing: Preprocessing, classes: Mapping[str, Sequence[str]], outputs: Sequence[Output]) -> str:
    """The model spec: preprocessing, class names, and which outputs are early exits of which task.

    Args:
        preprocessing: that the network is deployed with.
        classes: names by task.
        outputs: of the network.
    """
    lines = [
        f"{SPEC_BEGINNING} of a network that splitboard train made: what the checkpoint cannot tell.",
        "",
        "[preprocessing]",
        f"height = {preprocessing.height}",
        f"width = {preprocessing.width}",
        f"source_channels = {preprocessing.source_channels}",
        f"mean = {list(preprocessing.mean)}",
        f"std = {list(preprocessing.std)}",
        "",
        "[labels]",
        *(f"{task} = {json.dumps(list(names), ensure_ascii=False)}" for task, names in classes.items()),
    ]
    exits = [one for one in outputs if one.name != one.task]
    if exits:
        lines += ["", "[exits]", *(f'{one.name} = "{one.task}"' for one in exits)]
    return "\n".join(lines) + "\n"


def factory_text(network: Network) -> str:
    """A Python module whose ``make`` returns the network without its weights."""
    expression = repr(network)
    needed = {
        "fractions": ("Fraction",),
        "splitboard.zoo": (),
        "splitboard.zoo.multitask": ("ExitAt", "Flat", "Pooled"),
        "splitboard.zoo.sparsity": ("Grouped", "Scattered", "Sparsity"),
    }
    imports = {module: [name for name in names if f"{name}(" in expression] for module, names in needed.items()}
    imports["splitboard.zoo"].append("networks")
    imports["splitboard.zoo.multitask"].append("MultiTaskNet")
    lines = [
        f'{FACTORY_BEGINNING}, without its weights."""',
        "",
        *(f"from {module} import {', '.join(sorted(names))}" for module, names in imports.items() if names),
        "",
        "NETWORK = networks.Network(",
        *(f"    {field.name}={getattr(network, field.name)!r}," for field in fields(network)),
        ")",
        "",
        "",
        "def make() -> MultiTaskNet:",
        '    """Returns the network with random weights."""',
        "    return networks.make(NETWORK)",
    ]
    return "\n".join(lines) + "\n"
