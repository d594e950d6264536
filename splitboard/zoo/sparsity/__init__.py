"""Predefined sparsity (arXiv 2407.11763, arXiv 1812.01164): weights that do not exist, chosen before training."""

from splitboard.zoo.sparsity.sparsity import Grouped, Scattered, Sparsity, sparsify
from splitboard.zoo.sparsity.stored import Stored, stored

__all__ = ["Grouped", "Scattered", "Sparsity", "Stored", "sparsify", "stored"]
