"""A board without the board: its processor emulated, its Debian real."""
