"""The reference pass: log-probs of every pair under the frozen model, once, kept on disk under a key of the content.

Reads a model and tokenised pairs; writes output_dir/reference/KEY/: manifest.json (what the key is made of) and
log_probs.npz. A run whose rows, tokenizer, template, lengths, weights, dtype, layout and attention are the same
reads the store; training options (beta, learning rate, ...) are not in the key. An interrupted pass goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from zephyr_jax.data.encoded import EncodedPairs
from zephyr_jax.data.loader import PairBatches
from zephyr_jax.data.prefetch import prefetch
from zephyr_jax.model.mistral import ModelSettings, Params
from zephyr_jax.recipe import Ddpo, ModelShape
from zephyr_jax.records import InputError
from zephyr_jax.sharding import replicated
from zephyr_jax.stages.start import Run, StartModel, chosen_attention, say
from zephyr_jax.training.loop import placed_step_batch
from zephyr_jax.training.objectives import score_pairs
from zephyr_jax.training.programs import ShapePrograms
from zephyr_jax.whole_files import open_whole, write_json

FIELDS = ("chosen", "rejected", "num_chosen_tokens", "num_rejected_tokens")
PART_SECONDS = 20.0  # how much work an interruption may cost
DAMAGED = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile)  # what reading a broken .npz can raise
Arrays = dict[str, np.ndarray]


def make_reference_step(*, shape: ModelShape, settings: ModelSettings, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
    """The pass's program: (params, step batch of one micro-batch) -> FIELDS, float32 [P] each, on every device.

    Args:
      shape: the model's shape.
      settings: dtype and attention; nothing is kept for a backward pass, whatever they say of remat.
      mesh: the device mesh, of devices that need not be there.
    """
    settings = settings._replace(remat="none")

    def score(params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        first = {array: value[0] for array, value in batch.items()}
        return score_pairs(params, first, shape=shape, settings=settings)[0]._asdict()

    return jax.jit(score, out_shardings=replicated(mesh))


def score_all_pairs(
    params: Params,
    batches: PairBatches,
    *,
    shape: ModelShape,
    settings: ModelSettings,
    mesh: jax.sharding.Mesh,
    skip: Callable[[np.ndarray], bool] = lambda rows: False,
    name: str = "reference",
) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Log-probs of both answers of every pair, a batch at a time, with a progress bar.

    Args:
      params: the model's parameters.
      batches: one epoch of the pairs in file order, without accumulation.
      shape: the model's shape.
      settings: dtype and attention.
      mesh: the device mesh.
      skip: (indexes of a batch's pairs) -> whether they are done already.
      name: of the bar and of messages.

    Yields:
      The indexes of the pairs, int [P], and FIELDS, float32 [P]: sums of natural-log probabilities over the response
      tokens, and how many tokens those are.
    """
    step = make_reference_step(shape=shape, settings=settings, mesh=mesh)
    score = ShapePrograms(step, name=name, what="the pass")
    items = [np.concatenate(batches.items(step)) for step in range(1, batches.num_steps + 1)]
    steps = [step for step, rows in enumerate(items, start=1) if not skip(rows)]

    def placed() -> Iterator[tuple[np.ndarray, int, dict[str, jax.Array]]]:
        for step in steps:
            batch, placed_batch = placed_step_batch(batches, step, mesh=mesh)
            yield batch["pair_rows"][0], int(np.sum(batch["num_tokens"])), placed_batch

    done = batches.num_items - sum(len(items[step - 1]) for step in steps)
    with (
        tqdm(desc=name, total=batches.num_items, initial=done, unit="pair", mininterval=0.5) as bar,
        prefetch(placed) as ready,
    ):
        for rows, num_tokens, batch in ready:
            began = time.perf_counter()
            scores = jax.device_get(score(params, batch))
            real = rows >= 0
            yield rows[real], {field: np.asarray(scores[field])[real] for field in FIELDS}
            bar.set_postfix_str(f"{num_tokens / (time.perf_counter() - began):,.0f} tokens/s", refresh=False)
            bar.update(int(real.sum()))


@dataclasses.dataclass(frozen=True)
class ReferenceStore:
    """A place on disk for one data set's log-probs.

    Attributes:
      folder: where it lies.
      fields: what the log-probs depend on.
      split: train or eval; for people, and to compare like with like.
    """

    folder: Path
    fields: dict[str, str]
    split: str

    def read(self, num_pairs: int) -> Arrays | None:
        """The log-probs, [M] each, or None where the pass has not ended.

        Raises:
          InputError: the store holds something else, or is damaged.
        """
        manifest = self._manifest()
        if manifest is None:
            return None
        changed = _changed(manifest["fields"], self.fields)
        if changed:
            raise InputError(
                f"reference.path {self.folder}: the store was made from other content: {'; '.join(changed)}; give the "
                "store that belongs to this recipe, or leave reference.path null to compute it"
            )
        if not manifest["complete"]:
            return None
        path = self.folder / "log_probs.npz"
        try:
            with np.load(path) as stored:
                arrays = {field: stored[field] for field in FIELDS}
        except DAMAGED as error:
            raise self._damaged(path, error) from error
        if any(array.shape != (num_pairs,) for array in arrays.values()):
            raise InputError(f"{path}: does not hold {num_pairs} pairs; delete {self.folder} to compute it anew")
        return arrays

    def begin(self, num_pairs: int, *, writes: bool = True) -> tuple[Arrays, np.ndarray]:
        """Makes the folder, or takes up an interrupted pass: arrays [M] and which pairs are done, bool [M]."""
        if writes:
            self.folder.mkdir(parents=True, exist_ok=True)
        if writes and self._manifest() is None:
            write_json(self.folder / "manifest.json", self._content(num_pairs, complete=False))
        arrays = {field: np.zeros(num_pairs, np.float32) for field in FIELDS}
        done = np.zeros(num_pairs, bool)
        for part in sorted(self.folder.glob("part-*.npz")):
            try:
                with np.load(part) as stored:
                    for field in FIELDS:
                        arrays[field][stored["rows"]] = stored[field]
                    done[stored["rows"]] = True
            except DAMAGED as error:
                raise self._damaged(part, error) from error
        return arrays, done

    def add_part(self, rows: np.ndarray, arrays: Arrays) -> None:
        """Keeps some pairs' log-probs."""
        _save(self.folder / f"part-{int(rows[0]):09d}.npz", {"rows": rows} | {f: arrays[f][rows] for f in FIELDS})

    def complete(self, arrays: Arrays) -> None:
        """Writes the whole, then takes the parts away."""
        _save(self.folder / "log_probs.npz", arrays)
        write_json(self.folder / "manifest.json", self._content(len(arrays["chosen"]), complete=True))
        for part in self.folder.glob("part-*.npz"):
            part.unlink(missing_ok=True)  # two runs may share a store

    def nearest(self) -> tuple[str, list[str]] | None:
        """Among the complete stores beside this one, the one with the fewest other fields, and those fields."""
        found = []
        for path in self.folder.parent.glob("*/manifest.json"):
            try:
                manifest = json.loads(path.read_text(encoding="utf-8"))
                if manifest["complete"] and manifest["split"] == self.split:
                    found.append((path.parent.name, _changed(manifest["fields"], self.fields)))
            except (OSError, ValueError, KeyError):  # not ours, or damaged: its own run will say so
                continue
        return min(found, key=lambda entry: len(entry[1]), default=None)

    def _damaged(self, path: Path, error: Exception) -> InputError:
        return InputError(f"{path}: cannot be read ({error}); delete {self.folder} to compute it anew")

    def _manifest(self) -> dict[str, Any] | None:
        path = self.folder / "manifest.json"
        if not path.exists():
            return None
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise self._damaged(path, error) from error
        return manifest

    def _content(self, num_pairs: int, *, complete: bool) -> dict[str, Any]:
        content: dict[str, Any] = {"key": store_key(self.fields), "split": self.split, "complete": complete}
        return content | {"num_pairs": num_pairs, "fields": self.fields}


def store_key(fields: Mapping[str, str]) -> str:
    """The name of a store: the first 16 hex digits of the sha256 of its fields."""
    return hashlib.sha256(json.dumps(dict(fields), sort_keys=True).encode()).hexdigest()[:16]


def reference_fields(
    run: Run, options: Ddpo, *, pairs: EncodedPairs, start: StartModel, settings: ModelSettings
) -> dict[str, str]:
    """Everything that the log-probs depend on, by name."""
    return {
        "rows": pairs.fingerprint(),
        **run.tokenizer.fingerprint(),
        "max_length": str(options.max_length),
        "max_prompt_length": str(options.max_prompt_length),
        "weights": start.fingerprint(run.peers),
        "shape": json.dumps(start.shape.model_dump(), sort_keys=True),  # RoPE theta, window: not among the tensors
        "dtype": settings.compute_dtype,
        "layout": options.layout if options.layout == "padded" else f"packed {options.row_length}",
        # The kernel, not what was asked for: the rule of `auto` may change. That of the longest rows stands for all,
        # so that options which merely change the rows' shapes do not change the key.
        "attention": chosen_attention(settings, start.shape, options.longest_row),
    }


def reference_log_probs(
    run: Run,
    *,
    options: Ddpo,
    start: StartModel,
    pairs: EncodedPairs,
    batches: PairBatches,
    settings: ModelSettings,
    split: str,
) -> Arrays:
    """The reference log-probs of a data set: read from the store, or computed and stored.

    Args:
      run: the run.
      options: the dDPO block.
      start: the frozen model; its weights are read only if something is to be computed.
      pairs: the tokenised pairs, M of them.
      batches: one epoch of them in file order, without accumulation.
      settings: dtype and attention, those of training.
      split: train or eval.

    Returns:
      FIELDS, float32 [M] each.

    Raises:
      InputError: the store that `reference.path` names was made from other content.
    """
    fields = reference_fields(run, options, pairs=pairs, start=start, settings=settings)
    given = run.recipe.reference.path
    if given is None:
        folder = Path(run.recipe.output_dir) / "reference" / store_key(fields)
    else:
        folder = Path(given) if split == "train" else Path(given) / split
    store = ReferenceStore(folder, fields, split)
    arrays = store.read(len(pairs))
    if run.peers.first_says(f"reference ({split}) there?", lambda: arrays is not None):
        arrays = _seen(run, store, arrays, num_pairs=len(pairs))
        say(f"reference ({split}): {len(pairs)} pairs read from {folder}; nothing in their key has changed")
        return arrays
    nearest = store.nearest() if given is None else None
    if nearest is not None and nearest[1] and len(nearest[1]) < len(fields):
        say(f"reference ({split}): computed anew; the nearest store, {nearest[0]}, differs in {'; '.join(nearest[1])}")
    return _compute(run, store, start=start, batches=batches, settings=settings, split=split)


def _seen(run: Run, store: ReferenceStore, arrays: Arrays | None, *, num_pairs: int) -> Arrays:
    """What process 0 has read, in all processes: a shared file system may show it to some a little later."""
    run.peers.check_all_see(store.folder / "log_probs.npz")
    arrays = store.read(num_pairs) if arrays is None else arrays
    if arrays is None:
        raise RuntimeError(f"{store.folder}: process 0 sees a complete store there, {run.peers.me} does not")
    return arrays


def _compute(
    run: Run, store: ReferenceStore, *, start: StartModel, batches: PairBatches, settings: ModelSettings, split: str
) -> Arrays:
    """Every process computes its part of every batch and gets all results; process 0 keeps them."""
    arrays, done = store.begin(batches.num_items, writes=run.peers.is_first)
    run.peers.check_same(f"reference ({split}): pairs done", hashlib.sha256(done.tobytes()).hexdigest()[:12])
    if done.any():
        say(f"reference ({split}): going on after {int(done.sum())} of {len(done)} pairs in {store.folder}")
    params = start.load_on(run.mesh)
    began, waiting = time.perf_counter(), []
    scored = score_all_pairs(
        params,
        batches,
        shape=start.shape,
        settings=settings,
        mesh=run.mesh,
        skip=lambda rows: bool(done[rows].all()),
        name=f"reference ({split})",
    )
    for rows, values in scored:
        for field in FIELDS:
            arrays[field][rows] = values[field]
        waiting.append(rows)
        if run.peers.is_first and time.perf_counter() - began > PART_SECONDS:
            store.add_part(np.concatenate(waiting), arrays)
            began, waiting = time.perf_counter(), []
    if run.peers.is_first:
        store.complete(arrays)
    say(f"reference ({split}): {batches.num_items} pairs written to {store.folder}")
    return arrays


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    def short(value: str | None) -> str:
        return "nothing" if value is None else value if len(value) <= 24 else value[:12] + "..."

    names = list(dict.fromkeys([*old, *new]))
    return [
        f"{name}: {short(old.get(name))} -> {short(new.get(name))}" for name in names if old.get(name) != new.get(name)
    ]


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with open_whole(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
