"""Reads the tokenizer of a Hugging Face folder, and writes one that transformers reads the same.

What counts is tokenizer.json as it stands. (transformers 5 builds some tokenizers anew from their class name, and
AutoTokenizer makes wrong ids from a folder with tokenizer.model alone; what we save names the generic class, for
which transformers takes tokenizer.json as it stands too.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from zephyr_jax.data.tokenizer_files import LoadedTokenizer, bos_adder, from_sentencepiece
from zephyr_jax.records import InputError

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_KEPT_SETTINGS = ("model_max_length", "padding_side", "truncation_side")
_HUB_FILES = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
]


def download_tokenizer(spec: str) -> Path:
    """Fetches the tokenizer files of `hf:ORG/NAME` into the Hub's cache and returns their folder.

    Raises:
      InputError: no such repository, no network and nothing cached, or no right to read it.
    """
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(spec.removeprefix("hf:"), allow_patterns=_HUB_FILES))
    except Exception as error:  # the Hub's client raises errors of several libraries
        first_line = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise InputError(
            f"tokenizer {spec}: could not be fetched from the Hub ({type(error).__name__}: {first_line}); "
            "check the name, the network and HF_TOKEN, or give a folder"
        ) from error


def read_tokenizer_folder(folder: Path, *, name: str) -> LoadedTokenizer:
    """Opens a folder with tokenizer.json, or with a BPE tokenizer.model and no tokenizer.json.

    Args:
      folder: the folder; tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json and
        chat_template.jinja are read where they are.
      name: what to call it in messages.

    Returns:
      The tokenizer.

    Raises:
      InputError: neither file is there, one cannot be read, or no EOS is named.
    """
    config = _read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises plain Exception
            raise InputError(f"tokenizer {name}: cannot read {folder / 'tokenizer.json'}: {error}") from error
        loaded = LoadedTokenizer(name, tokenizer, {}, stop_ids=())
    elif (folder / "tokenizer.model").is_file():
        from zephyr_jax.data.sentencepiece_model import read_model

        path = folder / "tokenizer.model"
        loaded = from_sentencepiece(read_model(path.read_bytes(), name=str(path)), name=name)
    else:
        raise InputError(
            f"tokenizer {name}: {folder} has neither tokenizer.json nor tokenizer.model; "
            "save the tokenizer into it (transformers: tokenizer.save_pretrained), or name another one (tokenizer: ...)"
        )
    tokenizer = loaded.tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special_tokens = {**loaded.special_tokens, **_special_tokens(folder, config, tokenizer)}
    _add_missing_tokens(tokenizer, config, special_tokens)
    eos_id = tokenizer.token_to_id(special_tokens.get("eos_token", ""))
    if eos_id is None:
        raise InputError(
            f"tokenizer {name}: no EOS token: eos_token is {special_tokens.get('eos_token')!r} and must be a token of "
            f"the vocabulary; name it in {folder / 'tokenizer_config.json'}"
        )
    if "add_bos_token" in config or "add_eos_token" in config:
        # transformers 5 rebuilds the post-processor from these flags, whatever tokenizer.json says.
        tokenizer.post_processor = _flagged_processor(tokenizer, config, special_tokens)
    return LoadedTokenizer(
        name,
        tokenizer,
        special_tokens,
        stop_ids=_stop_ids(folder, eos_id),
        chat_template=_chat_template(folder, config),
        plain=loaded.plain,
        settings={key: config[key] for key in _KEPT_SETTINGS if key in config},
    )


def write_tokenizer_folder(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    special_tokens: Mapping[str, str],
    chat_template: str,
    settings: Mapping[str, Any],
) -> None:
    """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja.

    A tokenizer with no pad token gets its EOS as pad token, as Zephyr's own release has it, so that others can pad a
    batch; our masks never come from it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"pad_token": special_tokens["eos_token"], **special_tokens}
    config = {
        **settings,
        **tokens,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
        # The generic class: a class of its own (LlamaTokenizer) would rebuild the normaliser and change ids.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for file, content in (("tokenizer_config.json", config), ("special_tokens_map.json", tokens)):
        (folder / file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _special_tokens(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> dict[str, str]:
    """Role -> text, of those in the vocabulary: tokenizer_config.json first, then the files that may say it instead."""
    old = _read_json(folder / "special_tokens_map.json")
    ids = {**_read_json(folder / "config.json"), **_read_json(folder / "generation_config.json")}
    found = {}
    for role in _ROLES:
        entry = config.get(role) or old.get(role)
        text = entry.get("content") if isinstance(entry, dict) else entry
        token_id = ids.get(f"{role}_id")
        token_id = token_id[0] if isinstance(token_id, list) and token_id else token_id
        if text is None and role in ("bos_token", "eos_token") and isinstance(token_id, int):
            text = tokenizer.id_to_token(token_id)
        # A token outside the vocabulary would get an id that the model has no row for.
        if isinstance(text, str) and tokenizer.token_to_id(text) is not None:
            found[role] = text
    return found


def _add_missing_tokens(tokenizer: Tokenizer, config: dict[str, Any], special_tokens: Mapping[str, str]) -> None:
    """Makes added tokens of those that only the config names, as transformers does on loading."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    entries = [entry for _, entry in sorted((int(i), e) for i, e in config.get("added_tokens_decoder", {}).items())]
    entries += [{"content": text, "special": True} for text in special_tokens.values()]
    for entry in entries:
        text = entry["content"]
        if text not in known and tokenizer.token_to_id(text) is not None:
            known.add(text)
            flags = {key: bool(entry.get(key, False)) for key in ("lstrip", "rstrip", "single_word", "normalized")}
            token = AddedToken(text, special=bool(entry.get("special")), **flags)
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.content in special_tokens.values() and not token.special:
            tokenizer.add_special_tokens([AddedToken(token.content, special=True, normalized=token.normalized)])


def _flagged_processor(tokenizer: Tokenizer, config: dict[str, Any], special_tokens: Mapping[str, str]) -> Any:
    bos = special_tokens.get("bos_token")
    if config.get("add_bos_token") and bos is not None:
        return bos_adder(tokenizer, bos)
    return processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])


def _stop_ids(folder: Path, eos_id: int) -> tuple[int, ...]:
    named = _read_json(folder / "generation_config.json").get("eos_token_id")
    more = named if isinstance(named, list) else [named] if isinstance(named, int) else []
    return tuple(dict.fromkeys([eos_id, *(int(token_id) for token_id in more)]))


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja wins over the config, as in transformers; of several named ones, "default" is taken."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: got a {type(content).__name__}, wanted a JSON object")
    return content
