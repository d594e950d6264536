"""Puts a bundle and the edge runtime onto a board, whole or not at all."""
