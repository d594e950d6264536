"""The command line: the roof, which may import everything and does so lazily."""
