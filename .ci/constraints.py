"""Prints constraints.txt for the environment that runs this: the exact versions that the tests ran with.

A version that does not support Python 3.10 is pinned for newer Pythons only; there pip chooses its own.
Use: .venv/bin/python .ci/constraints.py > constraints.txt
"""

from importlib.metadata import distributions

from packaging.specifiers import SpecifierSet

OLDEST = "3.10"
NOT_PINNED = {"pip", "setuptools", "splitboard"}

print("# Written by .ci/constraints.py. torch has CPU and CUDA builds of this version; README says how to choose.")
pins = {}
for found in distributions():
    name, requires = found.metadata["Name"].lower().replace("_", "-"), found.metadata["Requires-Python"] or ""
    version = found.version.partition("+")[0]  # the local part says which build of torch it is
    newer = "" if OLDEST in SpecifierSet(requires) else '; python_version >= "3.11"'
    pins[name] = f"{name}=={version}{newer}"
for name in sorted(pins.keys() - NOT_PINNED):
    print(pins[name])
