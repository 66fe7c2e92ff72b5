"""Contexts as `.gfc` files: their format, what they depend on, their text, and checking them."""
