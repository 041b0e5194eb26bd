"""`python -m tarazu`."""

from tarazu.cli import main

main()
