"""Chat rows: read, repaired, rendered by the chat template, split and tokenized."""
