"""Prompts and their features: the file that holds them, and the encoder that makes them."""
