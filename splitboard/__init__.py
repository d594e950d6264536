"""splitboard: cut a trained multi-task network, run its INT8 half on the board, measure every split."""

__version__ = "0.1.0"
