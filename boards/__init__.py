"""Kinds of board, and what is put on a board."""
