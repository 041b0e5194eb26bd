"""One file per caption metric, under its published name."""
