"""Faster ways to compute what `chat/model` computes; every file has a plain counterpart."""
