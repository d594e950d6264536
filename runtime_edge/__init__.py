"""The thin runtime for boards: Python >= 3.8, numpy and one interpreter. Also packed as ``splitboard-edge.pyz``."""
