"""Explicit INT8: an ONNX graph in which QuantizeLinear and DequantizeLinear say what runs in INT8, for TensorRT."""
