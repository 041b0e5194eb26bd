"""Images and captions: read, cleaned, split, encoded."""
