"""Test-set evaluation: scores, baselines, error analysis, agreement with people."""
