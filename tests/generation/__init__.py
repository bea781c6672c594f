"""Decoding, sampling, and what the commands that generate share."""
