"""Zephyr in JAX: dSFT, AI feedback, reference log-probs, dDPO, and the judged model."""

__version__ = "0.1.0"
