"""The captioning model: encoder and decoder in one module."""
