"""The commands of the terminal. `tarazu.cli` declares their options."""
