"""Models for other runtimes: ONNX, torch.export, and samplers as tables of numbers."""
