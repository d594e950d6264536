"""Measures a bundle on a station: deploys it, holds the board, runs the board's own bench, fetches the records."""
