"""What torch, transformers and TRL compute on the small models: float32, CPU, eager attention, nothing of ours.

Not a test. Its numbers are stored by make_golden.py and met live by the tests of this folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

# Read by the Hub's client at its import: no telemetry, no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import datasets
import torch
import transformers
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tests.parity import runs
from tests.parity.small_data import Row
from tests.parity.small_models import SmallModel, make_tensors

# A thread of torch that waits for a core which others use spins: on a busy machine two threads took ten times longer.
torch.set_num_threads(1)
datasets.disable_progress_bars()
transformers.logging.disable_progress_bar()

# Zephyr's template in TRL's dialect: what is inside {% generation %} is an assistant token for SFT.
ZEPHYR_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token + '\n' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def load_model(model: SmallModel) -> transformers.PreTrainedModel:
    """The small model in transformers, float32, eager attention (exact with a window), weights from the seed."""
    config_class = {"mistral": transformers.MistralConfig, "llama": transformers.LlamaConfig}[model.architecture]
    config = config_class.from_dict(model.config())
    built = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    tensors = {name: torch.from_numpy(values) for name, values in make_tensors(model).items()}
    missing, unexpected = built.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"} or (missing and not model.tie_word_embeddings):
        raise ValueError(f"{model.name}: tensors missing {missing}, unexpected {unexpected}")
    built.tie_weights()
    return built.eval()


def log_probs(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """float32 log-probs [B, T, V] of the next token at every position of int [B, T] tokens (no padding)."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(tokens).long(), use_cache=False).logits
    return torch.log_softmax(logits.float(), dim=-1).numpy()


def response_log_prob(model: torch.nn.Module, prompt: np.ndarray, response: np.ndarray) -> float:
    """Sum over the response's tokens of log p(token | everything before), the row unpadded and alone."""
    tokens = np.concatenate([prompt, response])[None]
    with torch.no_grad():
        logits = model(
            input_ids=torch.from_numpy(tokens).long(), use_cache=False, logits_to_keep=len(response) + 1
        ).logits[0, :-1]
    scored = torch.log_softmax(logits.float(), dim=-1).gather(1, torch.from_numpy(response).long()[:, None])
    return float(scored.double().sum())


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A token per byte (id = byte + 3) after <pad> 0, <s> 1, </s> 2, with Zephyr's template."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<pad>", "<s>", "</s>")])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    wrapped.chat_template = ZEPHYR_TEMPLATE
    return wrapped


@dataclasses.dataclass(frozen=True)
class TrlResult:
    """What a TRL run leaves: one dict of metrics per step, and the token columns it trained on, in order."""

    steps: list[dict[str, float]]
    tokens: list[dict[str, list[int]]]


def train_dpo(model: SmallModel, rows: list[Row], run: runs.DpoRun) -> TrlResult:
    """NUM_STEPS steps of TRL's DPOTrainer, rows in their order, policy and reference both from the seed.

    TRL's `sigmoid` does not read `label_smoothing`. Its `robust` loss is [-(1-e) log s(x) + e log s(-x)] / (1-2e); as
    log s(x) - log s(-x) = x, our -(1-e) log s(x) - e log s(-x) is `robust` at -e / (1-2e).
    """
    smoothing = -run.label_smoothing / (1 - 2 * run.label_smoothing)
    columns = [{"prompt": r["chosen"][:-1], "chosen": r["chosen"][-1:], "rejected": r["rejected"][-1:]} for r in rows]
    with _arguments(run) as arguments:
        trainer = DPOTrainer(
            model=load_model(model),
            ref_model=load_model(model),
            args=DPOConfig(
                **arguments,
                beta=run.beta,
                loss_type=["robust" if run.label_smoothing else run.loss],
                label_smoothing=smoothing,
                max_length=None,
            ),
            train_dataset=datasets.Dataset.from_list(columns),
            processing_class=byte_tokenizer(),
        )
        return _run_trainer(trainer, runs.DPO_METRICS, ("prompt_ids", "chosen_ids", "rejected_ids"))


def train_sft(model: SmallModel, rows: list[Row], run: runs.SftRun) -> TrlResult:
    """NUM_STEPS steps of TRL's SFTTrainer, rows in their order, unpacked."""
    with _arguments(run) as arguments:
        trainer = SFTTrainer(
            model=load_model(model),
            args=SFTConfig(**arguments, assistant_only_loss=run.loss_on == "assistant", packing=False, max_length=None),
            train_dataset=datasets.Dataset.from_list([{"messages": row["messages"]} for row in rows]),
            processing_class=byte_tokenizer(),
        )
        return _run_trainer(trainer, runs.SFT_METRICS + runs.SFT_EXTRA_METRICS, ("input_ids", "labels"))


@contextlib.contextmanager
def _arguments(run: runs.TrainingRun) -> Iterator[dict[str, Any]]:
    """The arguments that both trainers share; they live as long as a temporary output folder."""
    schedules = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
    with tempfile.TemporaryDirectory() as folder:
        yield {
            "output_dir": folder,
            "max_steps": runs.NUM_STEPS,
            "per_device_train_batch_size": run.micro_batch_size,
            "gradient_accumulation_steps": runs.BATCH_SIZE // run.micro_batch_size,
            "learning_rate": run.learning_rate,
            "lr_scheduler_type": schedules[run.schedule],
            "warmup_steps": run.warmup_ratio,  # a share of the steps where below 1
            "optim": {"adamw": "adamw_torch", "rmsprop": "rmsprop"}[run.optimizer],
            "weight_decay": run.weight_decay,
            "max_grad_norm": run.max_grad_norm,
            "train_sampling_strategy": "sequential",
            "bf16": False,
            "gradient_checkpointing": False,
            "use_cpu": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }


def _run_trainer(trainer: Any, metrics: tuple[str, ...], columns: tuple[str, ...]) -> TrlResult:
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    if len(logged) != runs.NUM_STEPS:
        raise ValueError(f"TRL logged {len(logged)} steps, wanted {runs.NUM_STEPS}")
    steps = [{name: float(entry[name]) for name in metrics} for entry in logged]
    return TrlResult(steps, [{name: list(row[name]) for name in columns} for row in trainer.train_dataset])


def load_folder(folder: pathlib.Path) -> transformers.PreTrainedModel:
    """A Hugging Face folder as a float32 model with eager attention."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def versions() -> dict[str, str]:
    """Of the libraries whose numbers are stored."""
    return {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
