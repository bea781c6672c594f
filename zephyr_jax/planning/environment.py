"""What must be so before a plan imports JAX: its platform, the CUDA plugin's place, and a quiet stderr. No JAX here."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path

# Where `make plan` puts the CUDA plugin. Installed like other packages it would be seen by every command, and on a
# machine without a driver JAX would greet each of them with a traceback.
WHEELS = Path(sys.prefix) / "plan"

# Lines that the plugin's libraries write when they find no driver, as here they should not.
_DRIVER_LINES = (b"cudart_stub.cc", b"before absl::InitializeLog()")


def prepare_environment(environment: MutableMapping[str, str], *, target: str, num_devices: int) -> str | None:
    """Sets what JAX must find when it is imported, and puts the CUDA plugin on the path.

    Args:
      environment: os.environ.
      target: the name that `--target` took.
      num_devices: to be faked for the target cpu.

    Returns:
      What was set against the user's own setting, for people to read; None: nothing was.
    """
    given = environment.get("JAX_PLATFORMS", "")
    # With any other value JAX looks for the devices of this machine first, and without a driver it ends there.
    environment["JAX_PLATFORMS"] = "cpu"
    if target == "cpu":
        flags = f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
        environment["XLA_FLAGS"] = flags.strip()
    elif WHEELS.is_dir() and str(WHEELS) not in sys.path:
        sys.path.append(str(WHEELS))  # at the end: a plugin that is installed goes first
    if given in ("", "cpu"):
        return None
    return f"plan uses no device of this machine: JAX_PLATFORMS={given} is set to cpu for this command"


@contextlib.contextmanager
def without_driver_lines() -> Iterator[None]:
    """Holds back what is written on stderr meanwhile, by C++ too, then passes it on without the lines of no driver."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held.read().splitlines(keepends=True):
                if not any(words in line for words in _DRIVER_LINES):
                    os.write(2, line)
