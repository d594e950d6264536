"""Labelled images for the reference models: real data sets as their publishers ship them, and one that is rendered."""
