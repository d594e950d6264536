"""The server half: the rest of the network behind the Open Inference Protocol."""
