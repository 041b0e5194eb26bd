"""Answers and their scores: generation, text metrics, forgetting, reading, a judge."""
