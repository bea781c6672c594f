"""`python -m zephyr_jax <command> ...`: the same as the console script `zephyr` (cli.py)."""

from __future__ import annotations

import sys

from zephyr_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
