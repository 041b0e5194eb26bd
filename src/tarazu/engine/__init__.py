"""Training, proof and accounting for any task. Imports no task."""
