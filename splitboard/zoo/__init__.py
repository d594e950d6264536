"""Reference multi-task models, their data sets and their training."""
