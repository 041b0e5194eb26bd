"""Recipes: their schema, their errors, and the shipped ones. Imports no torch."""
