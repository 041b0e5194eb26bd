"""Captions from a model: beam search, ensembles, mirrored images."""
