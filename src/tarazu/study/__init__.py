"""Studies: the runs of a recipe, their searches and results, and the merging of studies."""
