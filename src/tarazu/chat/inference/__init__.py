"""Trained models in use: loading, exporting, chatting in the terminal."""
