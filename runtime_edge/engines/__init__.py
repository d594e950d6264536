"""Interpreters that run edge halves, behind one protocol."""
