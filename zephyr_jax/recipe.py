"""Every option of a run, typed and frozen: what a recipe's YAML file may say, and what cannot go together.

Not here: how the file is read and how its mistakes are worded (recipe_file.py), and what the options do. No JAX, so
that a mistake in a recipe shows in under a second.

    recipe = load_recipe("configs/tiny.yaml", ["ddpo.beta=0.2"])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from zephyr_jax import recipe_file, yaml_nodes
from zephyr_jax.records import InputError

Stage = Literal["dsft", "ddpo"]
STAGE_ORDER: tuple[Stage, ...] = ("dsft", "ddpo")
# plain: one text a row, or several that see those before them, positions from 0, padding at the end. dialogues: packed,
# apart from each other. pairs: packed pairs whose answers share their prompt. forks: prompts that share their beginning
# too (scoring tasks alone); the most general.
RowLayout = Literal["plain", "dialogues", "pairs", "forks"]


def _no_adapters(value: Any) -> None:
    if value is not None:
        raise ValueError("adapters are not in this version yet; leave it null to train every parameter")


def _folder_name(text: str) -> str:
    if not text.strip() or text in (".", "..") or "/" in text or "\\" in text or "\0" in text:
        raise ValueError(
            f"got {text!r}, wanted the name of one folder, without slashes (output_dir says where it lies)"
        )
    return text


def _given(text: str) -> str:
    if not text.strip():
        raise ValueError("got an empty text, wanted some; where the key may be null, write null")
    return text


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Text = Annotated[str, Field(strict=True), AfterValidator(_given)]
OneOrSeveral = BeforeValidator(_listed)  # of a list of texts, which may be written as one text
FolderName = Annotated[str, Field(strict=True), AfterValidator(_folder_name)]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1)]
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
AxisSize = Annotated[int, Field(strict=True, ge=-1)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)]
Smoothing = Annotated[float, Field(strict=True, ge=0, lt=0.5, allow_inf_nan=False)]
NoAdapters = Annotated[None, BeforeValidator(_no_adapters)]


class Options(BaseModel):
    """Base of every block: frozen, hashable, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelShape(Options):
    """The model's architecture under Hugging Face's names: the one model configuration used everywhere.

    `num_key_value_heads` and `head_dim` may be left out or null and are then filled in: as many key/value heads as
    heads, and hidden_size / num_attention_heads. `sliding_window` counts the current token; None is no window.
    """

    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    # These two have no None after validation: _fill_head_sizes puts their values in.
    num_key_value_heads: Count = Field(default=None, validate_default=False)  # type: ignore[assignment]
    head_dim: Count = Field(default=None, validate_default=False)  # type: ignore[assignment]
    intermediate_size: Count
    vocab_size: Count
    rope_theta: Positive = 10000.0
    rms_norm_eps: Positive = 1e-5
    sliding_window: Count | None = None
    tie_word_embeddings: Flag = False
    max_position_embeddings: Count = 32768

    @model_validator(mode="before")
    @classmethod
    def _fill_head_sizes(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        # Hugging Face's own files write null for "derived", so null is the same as left out.
        derived = ("num_key_value_heads", "head_dim")
        filled = {key: value for key, value in data.items() if key not in derived or value is not None}
        heads, hidden = filled.get("num_attention_heads"), filled.get("hidden_size")
        if type(heads) is int and heads > 0:
            filled.setdefault("num_key_value_heads", heads)
            if type(hidden) is int and hidden > 0 and "head_dim" not in filled:
                if hidden % heads:
                    wanted = f"wanted a multiple of num_attention_heads ({heads}), or head_dim given"
                    recipe_file.raise_problems([("hidden_size", f"got {hidden}, {wanted}")])
                filled["head_dim"] = hidden // heads
        return filled

    @model_validator(mode="after")
    def _check(self) -> ModelShape:
        heads, key_value_heads = self.num_attention_heads, self.num_key_value_heads
        problems = []
        if heads % key_value_heads:
            wanted = f"wanted a divisor of num_attention_heads ({heads})"
            problems.append(("num_key_value_heads", f"got {key_value_heads}, {wanted}"))
        if self.head_dim % 2:
            problems.append(("head_dim", f"got {self.head_dim}, wanted an even size: rotary positions turn pairs"))
        recipe_file.raise_problems(problems)
        return self


class Model(Options):
    """The model to start from and how it computes; parameters and optimizer state are float32."""

    weights: Text | None
    shape: ModelShape | None = None
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    attention: Literal["auto", "xla", "blockwise", "pallas", "cudnn", "splash"] = "auto"
    remat: Literal["none", "full", "attention", "mlp", "dots"] = "full"

    @model_validator(mode="after")
    def _check(self) -> Model:
        problems = []
        if self.weights is None and self.shape is None:
            problems.append(("shape", "weights is null (random weights), which needs the shape of the model beside it"))
        if self.attention == "cudnn" and self.compute_dtype == "float32":
            problems.append(
                ("attention", "got cudnn with compute_dtype float32, wanted bfloat16, or attention auto or xla")
            )
        recipe_file.raise_problems(problems)
        return self


class Mesh(Options):
    """Sizes of the device mesh's axes; one of them may be -1, which takes what is left of the devices."""

    data: AxisSize = 1
    fsdp: AxisSize = -1
    tensor: AxisSize = 1

    @model_validator(mode="after")
    def _check(self) -> Mesh:
        sizes = self.model_dump()
        problems = [
            (axis, "got 0, wanted 1 or more, or -1 for what is left") for axis, size in sizes.items() if not size
        ]
        if list(sizes.values()).count(-1) > 1:
            got = f"got {_sizes_text(sizes)}, wanted -1 for at most one axis"
            problems.append(
                ("", got if "fsdp" in self.model_fields_set else f"{got} (fsdp is -1 where it is not given)")
            )
        recipe_file.raise_problems(problems)
        return self


class Source(Options):
    """Where rows come from: a path, `hf:ORG/NAME:SPLIT`, `tfds:NAME_OR_DIR:SPLIT` or `builtin:NAME:SPLIT`.

    Attributes:
      source: the place.
      fraction: share of its rows to take.
      limit: at most so many rows, after the fraction.
    """

    shorthand_key: ClassVar[str] = "source"  # a plain text in a list of sources is this key's value

    source: Text
    fraction: Share = 1.0
    limit: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        return {cls.shorthand_key: data} if isinstance(data, str) else data


def _not_empty(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    # Not Field(min_length=1): that also speaks up when an item is wrong.
    if not sources:
        raise ValueError("got an empty list, wanted at least one source")
    return sources


class Data(Options):
    """The rows a stage trains on and those it is judged on."""

    train: Annotated[tuple[Source, ...], AfterValidator(_not_empty)]
    eval: tuple[Source, ...] = ()


class StageOptions(Options):
    """What both stages have: data, the number of steps, the optimizer, and when to log, evaluate and save."""

    data: Data
    max_length: Count
    batch_size: Count
    micro_batch_size: Count | None = None
    epochs: Count = 1
    max_steps: Count | None = None
    learning_rate: Positive
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    schedule_steps: Count | None = None  # steps the schedule is planned for, where these are not the steps run
    min_learning_rate_ratio: Ratio = 0.0
    warmup_ratio: Ratio = 0.1
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    adam_b1: Decay = 0.9
    adam_b2: Decay = 0.999
    adam_eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive | None = 1.0
    shuffle: Flag = True
    max_bad_rows: Ratio = 0.01
    log_every: Count = 1
    eval_every: Count | None = None
    save_every: Count | None = None
    keep_checkpoints: Count = 2
    lora: NoAdapters = None

    def problems(self) -> list[tuple[str, str]]:
        """What cannot go together in this block, as (key, sentence)."""
        found = []
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            wanted = f"wanted a divisor of batch_size ({self.batch_size})"
            found.append(("micro_batch_size", f"got {self.micro_batch_size}, {wanted}"))
        if self.eval_every is not None and not self.data.eval:
            found.append(("eval_every", f"got {self.eval_every}, but data.eval is empty; give it rows, or null here"))
        return found

    @model_validator(mode="after")
    def _check(self) -> StageOptions:
        recipe_file.raise_problems(self.problems())
        return self


class Dsft(StageOptions):
    """Distilled supervised fine-tuning; a batch counts rows (packed rows when packing)."""

    max_length: Count = 2048
    packing: Flag = True
    loss_on: Literal["assistant", "all"] = "assistant"
    isolate_dialogues: Flag = True  # False: packed dialogues see each other, positions running on (the first stack)
    batch_size: Count = 128
    learning_rate: Positive = 2.0e-5

    @property
    def row_layout(self) -> RowLayout:
        """How the stage's rows are laid out: what attention may rely on."""
        return "dialogues" if self.packing and self.isolate_dialogues else "plain"

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row there may be."""
        return self.max_length


class Ddpo(StageOptions):
    """Distilled direct preference optimisation; a batch counts pairs."""

    beta: Positive = 0.1
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    label_smoothing: Smoothing = 0.0
    max_length: Count = 1024
    max_prompt_length: Count = 512
    batch_size: Count = 32
    learning_rate: Positive = 5.0e-7
    layout: Literal["packed", "padded"] = "packed"
    row_length: Count = 2048

    @property
    def row_layout(self) -> RowLayout:
        """How the stage's rows are laid out: what attention may rely on."""
        return "pairs" if self.layout == "packed" else "plain"

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row there may be."""
        return self.row_length if self.layout == "packed" else self.max_length

    def problems(self) -> list[tuple[str, str]]:
        """What cannot go together in this block, as (key, sentence)."""
        found = super().problems()
        if self.max_prompt_length >= self.max_length:
            wanted = f"wanted less than max_length ({self.max_length}), which holds the prompt and one response"
            found.append(("max_prompt_length", f"got {self.max_prompt_length}, {wanted}"))
        if self.layout == "packed" and self.row_length < self.max_length:
            # Longer pairs than a row holds are dropped and counted when the rows are packed.
            wanted = (
                f"wanted at least max_length ({self.max_length}): a packed row holds a prompt and both its responses"
            )
            found.append(("row_length", f"got {self.row_length}, {wanted}; layout: padded has no such rows"))
        if self.label_smoothing and self.loss != "sigmoid":
            found.append(
                ("label_smoothing", f"got {self.label_smoothing}, wanted 0 with loss {self.loss}: only sigmoid has it")
            )
        return found


class Reference(Options):
    """Where the reference log-probs are kept; null: output_dir/reference/KEY, shared by all runs there."""

    path: Text | None = None


class Samples(Options):
    """What the model is asked at every evaluation.

    Attributes:
      num_prompts: evaluation prompts whose answers are shown.
      max_new_tokens: length of an answer at most.
      num_exact: evaluation prompts whose generated answer is compared with the right one; 0: none.
    """

    num_prompts: CountOrZero = 3
    max_new_tokens: Count = 64
    num_exact: CountOrZero = 0


class Recipe(Options):
    """One run: its stages, the model, the data and everything that can be chosen about them."""

    name: FolderName
    output_dir: Text = "runs"
    seed: Seed = 42
    stages: tuple[Stage, ...] = STAGE_ORDER
    model: Model
    lora: NoAdapters = None
    tokenizer: Text | None = None
    chat_template: Text = "zephyr"
    empty_system_turn: Flag = False
    bos: Literal["auto", "always", "never"] = "auto"
    mesh: Mesh = Mesh()
    dsft: Dsft | None = None
    ddpo: Ddpo | None = None
    reference: Reference = Reference()
    samples: Samples = Samples()
    trackers: tuple[Literal["tensorboard"], ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        problems = []
        if self.stages != tuple(stage for stage in STAGE_ORDER if stage in self.stages) or not self.stages:
            given = ", ".join(self.stages)
            problems.append(
                ("stages", f"got [{given}], wanted [dsft], [ddpo] or [dsft, ddpo], each once and in this order")
            )
        for stage in dict.fromkeys(self.stages):
            if getattr(self, stage) is None:
                problems.append(
                    (stage, f"missing or null, but stages names {stage}; add the block, or take it out of stages")
                )
        if self.model.weights is None and self.tokenizer is None:
            problems.append(
                (
                    "tokenizer",
                    "model.weights is null and brings no tokenizer; wanted a PATH, builtin:mistral-7b-v0.1, ...",
                )
            )
        if len(set(self.trackers)) != len(self.trackers):
            problems.append(("trackers", f"got {', '.join(self.trackers)}, wanted each once"))
        recipe_file.raise_problems(problems)
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies overrides.

    Args:
      path: a YAML 1.2 file.
      overrides: `a.b.c=value` texts, applied in order.

    Returns:
      The recipe, complete: defaults filled in, environment variables put in place.

    Raises:
      InputError: for everything that is wrong with the file or an override, all of it in one message.
    """
    return recipe_file.read_options(Recipe, path, overrides=overrides)


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as a YAML text with every key, which `load_recipe` reads back as an equal recipe."""
    return yaml_nodes.to_yaml(recipe.model_dump(mode="json"))


def recipe_differences(old: Recipe | Mapping[str, Any], new: Recipe | Mapping[str, Any]) -> list[str]:
    """What changed from one recipe to another, a line per dotted key: `ddpo.beta: 0.1 -> 0.2`; [] when nothing did."""
    return recipe_file.differences(old, new)


def resolve_mesh(mesh: Mesh, num_devices: int) -> dict[str, int]:
    """The sizes of the mesh's axes on so many devices: plain arithmetic, no device is touched.

    Args:
      mesh: axis sizes, of which one may be -1.
      num_devices: devices to spread over, of all processes together.

    Returns:
      {"data": ..., "fsdp": ..., "tensor": ...}, whose product is `num_devices`.

    Raises:
      InputError: the devices cannot fill the mesh.
    """
    sizes: dict[str, int] = mesh.model_dump()
    fixed = math.prod(size for size in sizes.values() if size != -1)
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if open_axes and num_devices % fixed:
        others = ", ".join(axis for axis in sizes if axis not in open_axes)
        raise InputError(
            f"mesh: got {_sizes_text(sizes)} on {num_devices} devices; {others} multiply to {fixed}, which does not "
            f"divide {num_devices}; wanted sizes that do (mesh.{open_axes[0]}=-1 takes what is left of them)"
        )
    if not open_axes and fixed != num_devices:
        raise InputError(
            f"mesh: got {_sizes_text(sizes)}, which takes {fixed} devices, but there are {num_devices}; wanted a "
            f"product of {num_devices}, or -1 for one axis to take what is left (mesh.fsdp=-1)"
        )
    return {axis: num_devices // fixed if size == -1 else size for axis, size in sizes.items()}


def _sizes_text(sizes: Mapping[str, int]) -> str:
    return "{" + ", ".join(f"{axis}: {size}" for axis, size in sizes.items()) + "}"
