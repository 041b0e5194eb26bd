"""Decoding captions: beam search, ensembles, flipped images."""
