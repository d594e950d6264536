"""Checkpoint to ONNX, split points, edge and server graphs, float TFLite."""
