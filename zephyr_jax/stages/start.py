"""What every stage starts from: the model's shape, its parameters' source, the tokenizer, the device mesh.

Not here: training, data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from zephyr_jax.compilation import keep_compiled_programs
from zephyr_jax.data.chat import ChatTokenizer, load_chat_tokenizer
from zephyr_jax.data.sources import check_source
from zephyr_jax.host_memory import keep_freed_memory
from zephyr_jax.model.attention_rule import MEASURED, choose_attention, platform_here
from zephyr_jax.model.mistral import PARTITION_RULES, ModelSettings, Params, abstract_params, init_params
from zephyr_jax.model.sources import open_weights
from zephyr_jax.model.weight_source import WeightSource, check_shape
from zephyr_jax.peers import ALONE, Peers
from zephyr_jax.processes import describe_devices
from zephyr_jax.recipe import ModelShape, Recipe, RowLayout
from zephyr_jax.records import InputError, ReadReport
from zephyr_jax.sharding import describe_mesh, make_mesh, tree_shardings

OnEvaluation = Callable[[str, Params, int], None]  # (stage, params, step): sample answers

LAYOUT_NAMES = {
    "plain": "plain rows",
    "dialogues": "packed dialogues",
    "pairs": "packed pairs",
    "forks": "packed forks",
}


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def evaluation(
    stage: str, measure: Callable[[Params], dict[str, float]], on_evaluation: OnEvaluation
) -> Callable[[Params, int], dict[str, float]]:
    """(params, step) -> metrics: what a stage's loop calls at every evaluation."""

    def evaluate(params: Params, step: int) -> dict[str, float]:
        values = measure(params)
        on_evaluation(stage, params, step)
        return values

    return evaluate


@dataclasses.dataclass(frozen=True)
class Run:
    """A run: its recipe, its folder, the mesh it runs on, the tokenizer it talks through.

    Attributes:
      recipe: the recipe as resolved.
      folder: output_dir/name.
      mesh: the device mesh.
      tokenizer: one tokenizer, template and BOS policy for training, scoring and generation.
      peers: the processes that it runs in; process 0 writes the files and speaks.
    """

    recipe: Recipe
    folder: Path
    mesh: jax.sharding.Mesh
    tokenizer: ChatTokenizer
    peers: Peers = ALONE


@dataclasses.dataclass(frozen=True)
class StartModel:
    """A model to start from: random weights where `source` is None."""

    shape: ModelShape
    source: WeightSource | None
    seed: int

    def load_params(self, shardings: Any) -> Params:
        """Parameters, float32, each straight to its sharding."""
        if self.source is not None:
            return self.source.load_params(shardings)
        return jax.jit(init_params, static_argnums=1, out_shardings=shardings)(jax.random.key(self.seed), self.shape)

    def load_on(self, mesh: jax.sharding.Mesh) -> Params:
        """Parameters, sharded over the mesh by the model's table."""
        return self.load_params(tree_shardings(abstract_params(self.shape), PARTITION_RULES, mesh))

    def fingerprint(self, peers: Peers = ALONE) -> str:
        """Hash of the weights' content, which the processes share out; of shape and seed where they are random."""
        if self.source is not None:
            return self.source.fingerprint(peers)
        text = json.dumps(["random", self.seed, self.shape.model_dump()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def open_run(recipe: Recipe, *, peers: Peers = ALONE) -> Run:
    """Checks the mesh against the devices, then reads the tokenizer; nothing large is loaded.

    Args:
      recipe: the recipe.
      peers: the processes of this job, of which each calls this.

    Returns:
      The run; its folder is not made yet.

    Raises:
      InputError: the devices cannot fill the mesh, or the tokenizer cannot be read or does not fit.
    """
    keep_freed_memory()  # before the first question for a device
    if peers.count > 1:
        say(describe_devices(peers))
    mesh = make_mesh(recipe.mesh, hosts=peers.hosts)
    if mesh.size > 1:
        say(f"mesh: {describe_mesh(mesh, hosts=peers.hosts)}")
    kept_in = keep_compiled_programs()
    if kept_in is not None:
        say(f"compiled programs are kept in {kept_in} (JAX_ENABLE_COMPILATION_CACHE=0: they are not)")
    tokenizer = load_chat_tokenizer(
        _tokenizer_name(recipe),
        chat_template=recipe.chat_template,
        bos=recipe.bos,
        empty_system_turn=recipe.empty_system_turn,
    )
    folder = Path(recipe.output_dir) / recipe.name
    return Run(recipe=recipe, folder=folder, mesh=mesh, tokenizer=tokenizer, peers=peers)


def check_run(run: Run) -> None:
    """What can be known of the first model, the data and this machine before any row or weight is read.

    Raises:
      InputError: the weights are not there or not of the shape given, the tokenizer does not fit them, the mesh does
        not divide them, the attention asked for cannot run here, or a file of rows is not there.
    """
    model = run.recipe.model
    if model.shape is not None and model.weights is not None and model.weights.startswith("hf:"):
        # A download is no check: the shape given is held against the weights when they are loaded.
        start = _fitting(StartModel(shape=model.shape, source=None, seed=run.recipe.seed), run)
    else:
        start = base_model(run)
    if "tensorboard" in run.recipe.trackers and importlib.util.find_spec("tensorboardX") is None:
        raise InputError(
            "trackers: tensorboard needs the package tensorboardX; pip install -e '.[tensorboard]', or leave it out"
        )
    tree_shardings(abstract_params(start.shape), PARTITION_RULES, run.mesh)
    for stage in run.recipe.stages:
        options = getattr(run.recipe, stage)
        chosen_attention(model_settings(run.recipe, rows=options.row_layout), start.shape, options.longest_row)
    for stage in run.recipe.stages:
        data = getattr(run.recipe, stage).data
        for source in (*data.train, *data.eval):
            check_source(source.source)


def run_facts(run: Run, reports: Mapping[str, ReadReport]) -> dict[str, Any]:
    """What a stage's files say of the run beside its figures: rows lost by split, devices, processes, versions."""
    devices = list(run.mesh.devices.flat)
    return {
        "data": {split: report.as_dict() for split, report in reports.items()},
        "devices": [str(device) for device in devices],
        "device_kind": devices[0].device_kind,
        "mesh": dict(run.mesh.shape),
        "processes": run.peers.count,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")}
        | {"python": platform.python_version(), "backend": jax.default_backend()},
    }


def _tokenizer_name(recipe: Recipe) -> str:
    if recipe.tokenizer is not None:
        return recipe.tokenizer
    assert recipe.model.weights is not None  # the recipe's own check
    if recipe.model.weights.startswith("hf:"):  # its tokenizer files alone, not yet the weights
        return recipe.model.weights
    return open_weights(recipe.model.weights).tokenizer


def base_model(run: Run) -> StartModel:
    """The model that the recipe starts from."""
    model = run.recipe.model
    source = None if model.weights is None else open_weights(model.weights)
    if source is not None and model.shape is not None:
        check_shape(model.shape, source.shape, weights=source.name)
    shape = model.shape if source is None else source.shape
    assert shape is not None  # the recipe's own check
    return _fitting(StartModel(shape=shape, source=source, seed=run.recipe.seed), run)


def stage_model(run: Run, stage: str) -> StartModel:
    """The model that a finished stage of this run has written."""
    source = open_weights(str(run.folder / stage / "model"))
    return _fitting(StartModel(shape=source.shape, source=source, seed=run.recipe.seed), run)


def _fitting(model: StartModel, run: Run) -> StartModel:
    needed, there = run.tokenizer.vocab_size, model.shape.vocab_size
    if needed > there:
        raise InputError(
            f"tokenizer {run.tokenizer.name}: has ids up to {needed - 1}, but the model's vocab_size is {there}; "
            f"wanted a tokenizer that fits the model, or model.shape.vocab_size of at least {needed} for random weights"
        )
    return model


def model_settings(recipe: Recipe, *, rows: RowLayout = "pairs") -> ModelSettings:
    """How the recipe wants the forward pass computed.

    Args:
      recipe: the recipe.
      rows: how the rows are laid out (`row_layout` of a stage's options); pairs is right for all.
    """
    model = recipe.model
    return ModelSettings(compute_dtype=model.compute_dtype, attention=model.attention, remat=model.remat, rows=rows)


def chosen_attention(settings: ModelSettings, shape: ModelShape, num_tokens: int) -> str:
    """The implementation of attention that rows of so many tokens get.

    Raises:
      InputError: the attention asked for cannot run here, or not for such rows.
    """
    return choose_attention(
        settings.attention,
        num_tokens,
        platform=settings.platform or platform_here(),
        dtype=settings.compute_dtype,
        head_dim=shape.head_dim,
        rows=settings.rows,
    )


def say_attention(settings: ModelSettings, shape: ModelShape, row_lengths: Iterable[int]) -> None:
    """Says which attention the rows of each length get, and why.

    Raises:
      InputError: as of `chosen_attention`.
    """
    platform = settings.platform or platform_here()
    chosen: dict[str, list[str]] = {}
    for length in sorted(set(row_lengths)):
        chosen.setdefault(chosen_attention(settings, shape, length), []).append(str(length))
    kernels = "; ".join(f"{name} for rows of {', '.join(lengths)} tokens" for name, lengths in chosen.items())
    how = "as the recipe says"
    if settings.attention == "auto":
        measured = "" if platform in MEASURED else f", not measured on {platform}"
        how = f"chosen by auto for {LAYOUT_NAMES[settings.rows]}{measured}"
    say(f"attention: {kernels} ({how}); compute {settings.compute_dtype} on {platform}")
