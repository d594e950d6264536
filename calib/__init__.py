"""Calibration sets, value ranges, quantisation."""
