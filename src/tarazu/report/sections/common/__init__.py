"""Sections and parts of sections that every task shares."""
