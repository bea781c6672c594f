"""Answers from a model: prefill, cached decoding on the device, sampling; shared by `generate`, `chat` and training."""
