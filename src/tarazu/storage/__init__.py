"""Files of a run folder: where they lie, how they are written and read. Imports no torch."""
