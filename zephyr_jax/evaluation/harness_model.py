"""Our model as lm-evaluation-harness knows models, so that it runs every task that the harness has.

    from lm_eval import simple_evaluate
    from zephyr_jax.evaluation.harness_model import ZephyrLM

    simple_evaluate(ZephyrLM("runs/tiny/ddpo"), tasks=["arc_easy"], limit=100)

The import registers the name zephyr_jax, so that `python -m zephyr_jax.evaluation.harness_model` is the harness's own
command with it:

    python -m zephyr_jax.evaluation.harness_model run --model zephyr_jax --model_args pretrained=DIR --tasks arc_easy

Needs the extra [harness]. Here alone is the harness's class; what it asks is answered by text_model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from zephyr_jax.evaluation.text_model import TextModel, open_text_model
from zephyr_jax.records import InputError, Message

MAX_NEW_TOKENS = 256  # the harness's own default

# What tasks say of greedy decoding beside what is read below, and what changes nothing there.
_WITHOUT_EFFECT = {"use_cache", "top_k", "top_p", "min_p"}


@register_model("zephyr_jax")
class ZephyrLM(TemplateLM):
    """A model of ours under the harness; texts become ids as with its Hugging Face models."""

    def __init__(
        self,
        pretrained: str | TextModel,
        *,
        batch_size: int | str | None = None,
        max_length: int | None = None,
        dtype: str | None = None,
        chat_template: str = "tokenizer",
        bos: str = "auto",
        tokens_per_step: int | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Opens a model and reads its weights.

        Args:
          pretrained: as `--model` of the commands takes it, or a loaded model.
          batch_size: answers made side by side by generate_until; "auto" and None: 8. Log-likelihoods are packed in
            rows instead, see `tokens_per_step`.
          max_length: the most tokens that it reads; None: the model's own.
          dtype: float32, bfloat16; None: bfloat16, on a CPU float32.
          chat_template: tokenizer, zephyr or a jinja file.
          bos: auto, always or never.
          tokens_per_step: places in the rows of a step; None: by the platform.
          max_batch_size: taken since the harness gives it, and not needed.
          device: likewise: JAX says what devices there are.

        Raises:
          InputError: there is no such model, or an option is out of its range.
        """
        super().__init__()
        if not isinstance(pretrained, TextModel):
            options: dict[str, Any] = {"dtype": None if dtype == "auto" else dtype, "max_length": max_length}
            options |= {"chat_template": chat_template, "bos": bos, "tokens_per_step": tokens_per_step}
            pretrained = open_text_model(pretrained, **options).load()
        self.model = pretrained
        self.batch_size = 8 if batch_size in (None, "auto") else int(batch_size)  # type: ignore[arg-type]
        self.max_length = self.model.max_length

    @property
    def eot_token_id(self) -> int:
        """EOS."""
        return self.model.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: BOS, or EOS where there is none."""
        return self.model.prefix_id

    @property
    def tokenizer_name(self) -> str:
        """For the keys of the harness's caches: the tokenizer's content, not its place."""
        return self.model.tokenizer.fingerprint()["tokenizer"]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The text of the chat template; for the keys of the harness's caches. There is one, so no name picks it."""
        return self.model.tokenizer.template_text if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A dialogue as the model was trained on it; without generation prompt its last message is left open."""
        messages: list[Message] = [{"role": turn["role"], "content": turn["content"]} for turn in chat_history]  # type: ignore[typeddict-item]
        if add_generation_prompt:
            return self.model.tokenizer.render(messages, add_generation_prompt=True)
        text = self.model.tokenizer.render(messages, add_generation_prompt=False)
        # Templates may strip messages: with the spaces at its end where they are still there, else without.
        answer = messages[-1]["content"].lstrip()
        ends = [start + len(kept) for kept in (answer, answer.rstrip()) if (start := text.rfind(kept)) >= 0]
        if not ends:
            raise InputError("chat template: rewrites the answer that is to be gone on with; wanted one that keeps it")
        return text[: ends[0]]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text; special tokens in it are read as such."""
        return self.model.encode(string, bos=add_special_tokens)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        name = None if disable_tqdm else "log-likelihoods"
        answers = [(0.0, False)] * len(requests)
        with tqdm(desc=name, total=len(requests), unit="request", mininterval=0.5, disable=disable_tqdm) as bar:
            for found in self.model.iterate_loglikelihoods([request[1:] for request in requests], name=name):
                for index, score in found.items():
                    answers[index] = (score.log_prob, score.is_greedy)
                    texts = requests[index][0]
                    if texts is not None:  # a window of a longer text is kept as a part of it
                        self.cache_hook.add_partial("loglikelihood", texts, answers[index])
                bar.update(len(found))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """How likely whole texts are, in windows of `max_length` where they are longer, each token predicted once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(index)
        totals = [0.0] * len(requests)
        found = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for owner, (log_prob, _) in zip(owners, found, strict=True):
            totals[owner] += log_prob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """How texts go on; requests of the same options are answered together.

        Raises:
          InputError: an option that decoding here does not have.
        """
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        answers = [""] * len(requests)
        for indexes in groups.values():
            options = dict(normalize_gen_kwargs(requests[indexes[0]].args[1], MAX_NEW_TOKENS))
            until, max_new_tokens = options.pop("until"), options.pop("max_gen_toks")
            sampled, temperature = options.pop("do_sample"), float(options.pop("temperature", None) or 0.0)
            temperature = temperature if sampled else 0.0
            top_p = float(options.pop("top_p", 1.0)) if temperature else 1.0
            ignored = {"use_cache"} if temperature else _WITHOUT_EFFECT
            unknown = {name: value for name, value in options.items() if name not in ignored}
            if unknown.pop("num_beams", 1) != 1 or unknown:
                raise InputError(
                    f"generation_kwargs: got {options}, wanted until, max_gen_toks, do_sample, temperature, top_p alone"
                )
            texts = self.model.generate_until(
                [requests[index].args[0] for index in indexes],
                until=until,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                batch_size=self.batch_size,
                name=None if disable_tqdm else "generations",
            )
            for index, text in zip(indexes, texts, strict=True):
                answers[index] = postprocess_generated_text(text, until, None)
                self.cache_hook.add_partial("generate_until", requests[index].args, answers[index])
        return answers

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        sizes = [leaf.size for leaf in _leaves(self.model.params)]
        return {
            "model_num_parameters": sum(sizes),
            "model_dtype": self.model.settings.compute_dtype,
        }


def _leaves(tree: Any) -> list[Any]:
    return [leaf for part in tree.values() for leaf in _leaves(part)] if isinstance(tree, dict) else [tree]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
