"""Training a captioning model: batches, losses, the CIDEr reward."""
