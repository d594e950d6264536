"""What the runtime asks of CUDA, by whichever Python binding is installed."""
