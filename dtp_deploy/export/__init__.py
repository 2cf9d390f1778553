"""From a PyTorch model to the files that a target takes: ONNX and `torch.export` programs, and passes over ONNX.

Nothing is imported here, so that the passes can be used where there is no PyTorch.
"""
