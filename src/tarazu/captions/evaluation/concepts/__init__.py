"""The nouns, colours and numbers that the error analysis knows."""
