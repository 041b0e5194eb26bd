"""Time, memory and disk of a study, estimated before it runs."""
