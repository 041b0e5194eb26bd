"""What the numbers of a study say: comparisons, statistics, curves, the recommendation."""
