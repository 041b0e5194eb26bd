"""Properties that every run must keep, as checks that anyone can run."""
