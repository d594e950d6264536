"""The one way to a board: run a program there, put a file, get a file."""
