"""Tests of zephyr_jax/model."""
