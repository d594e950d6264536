"""Measuring: rounds, meters, environment."""
