"""Trained captioners in use: loading, captioning, heat maps, ONNX."""
