"""The accuracy gate: what a bundle lost against its float model, per split and task, and whether that is too much."""
