"""A study: every run of a recipe, its searches, its results, and the merging of studies."""
