"""What is missing or wrong on a board, and the command that mends it."""
