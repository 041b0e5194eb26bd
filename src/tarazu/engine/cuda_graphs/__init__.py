"""Capture a forward or a training pass as a CUDA graph, and replay it."""
