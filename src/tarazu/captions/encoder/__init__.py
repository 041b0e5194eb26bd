"""The pretrained CNN: architecture, weights, feature extraction and its cache."""
