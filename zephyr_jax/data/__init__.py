"""Rows in, arrays out: sources, validation, chat templates, packing and the loader (NumPy only, no JAX)."""
