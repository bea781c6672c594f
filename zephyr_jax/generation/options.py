"""The options that every command which generates has, and their ranges. No JAX: a mistake shows at once."""

from __future__ import annotations

import argparse
import dataclasses
import math

from zephyr_jax.records import InputError

# Below this float32 cannot tell sampling from greedy, and a little further down it overflows.
SMALLEST_TEMPERATURE = 1e-4
NUM_SEEDS = 2**32


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How answers are sampled, and how long they may be; the ranges are checked where responses are made."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Gives a parser the model that answers."""
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="Hugging Face folder, a run's stage folder, or builtin:NAME"
    )


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives a parser how answers are sampled, and how the model computes."""
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (%(default)g)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="share sampled from (%(default)g, all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, else bfloat16")
    parser.add_argument(
        "--chat-template", default="tokenizer", metavar="T", help="tokenizer, zephyr or a jinja file (%(default)s)"
    )
    parser.add_argument("--bos", choices=("auto", "always", "never"), default="auto", help="BOS policy (%(default)s)")
    parser.add_argument("--devices", type=int, metavar="N", help="use the first N devices (default: all)")


def read_generation_options(arguments: argparse.Namespace) -> GenerationOptions:
    """Takes the sampling options from a command's arguments and checks the ranges of all that share them.

    Args:
      arguments: what add_generation_arguments added, and `batch_size` where the command has one.

    Returns:
      The options.

    Raises:
      InputError: naming the option, what was got and what was wanted.
    """
    for name in ("max_new_tokens", "batch_size", "devices"):
        count = getattr(arguments, name, None)
        if count is not None:
            check_count(f"--{name.replace('_', '-')}", count)
    check_seed("--seed", arguments.seed)
    check_temperature("--temperature", arguments.temperature)
    check_top_p("--top-p", arguments.top_p)
    return GenerationOptions(arguments.max_new_tokens, arguments.temperature, arguments.top_p, arguments.seed)


def check_seed(name: str, seed: int) -> None:
    """InputError unless the seed fits a JAX key."""
    if not 0 <= seed < NUM_SEEDS:
        raise InputError(f"{name}: got {seed}, wanted 0 to {NUM_SEEDS - 1}")


def check_count(name: str, count: int) -> None:
    """InputError unless the count is 1 or more."""
    if count < 1:
        raise InputError(f"{name}: got {count}, wanted 1 or more")


def check_temperature(name: str, temperature: float) -> None:
    """InputError unless the temperature is 0 or can be divided by."""
    if not (temperature == 0 or SMALLEST_TEMPERATURE <= temperature < math.inf):
        raise InputError(
            f"{name}: got {temperature}, wanted 0 (greedy) or a number from {SMALLEST_TEMPERATURE} up, such as 0.7"
        )


def check_top_p(name: str, top_p: float) -> None:
    """InputError unless the share is one that leaves something to sample from."""
    if not 0 < top_p <= 1:
        raise InputError(f"{name}: got {top_p}, wanted more than 0 and at most 1 (1 samples from all tokens)")
