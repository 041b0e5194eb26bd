"""Recipes: their schema, the messages of a bad one, and the shipped ones. Imports no torch."""
