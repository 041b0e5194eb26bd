"""Image captioning: a second task on the same engine."""
