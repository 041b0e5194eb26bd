"""What each command of the terminal prints and writes; `tarazu.cli` declares their options."""
