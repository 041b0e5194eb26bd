"""Instruction tuning of a causal language model on chat rows."""
