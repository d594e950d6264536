"""Energy meters: cumulative joules, so that a window is a subtraction and windows nest for free."""
