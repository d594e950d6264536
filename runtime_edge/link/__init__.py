"""The connection to the server half, and whether it is there."""
