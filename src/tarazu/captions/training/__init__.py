"""Training objectives: cross-entropy and the CIDEr reward."""
