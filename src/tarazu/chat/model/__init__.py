"""The base model: loading, batches, attention, the forward pass and the loss."""
