"""TensorRT: engines built on the board from the bundle's ONNX files, run and looked into."""
