"""Live comparisons with torch, transformers and TRL, and the maker of the stored numbers under tests/golden.

The tests in this folder need the `[parity]` extra and skip without it; their golden twins are tests/test_golden_*.py.
"""
