"""Templates: Zephyr's native rendering is its jinja text, spans are the answers, and refusals are one message."""

from __future__ import annotations

import pytest

from tests.data.chat_cases import NASTY_DIALOGUES, turns
from zephyr_jax.data.templates import ChatTemplate, ZephyrTemplate, load_template
from zephyr_jax.records import InputError

SPECIAL_TOKENS = {"eos_token": "</s>", "bos_token": "<s>"}


def jinja(tmp_path, text: str) -> ChatTemplate:
    path = tmp_path / "template.jinja"
    path.write_text(text, encoding="utf-8")
    return load_template(str(path), SPECIAL_TOKENS, tokenizer_name="T", tokenizer_template=None)


def test_zephyr_as_rendered_by_the_original():
    template = ZephyrTemplate(SPECIAL_TOKENS, empty_system_turn=True)
    assert template.render(turns("Q", "A", "Q2"), add_generation_prompt=True) == (
        "<|system|>\n</s>\n<|user|>\nQ</s>\n<|assistant|>\nA</s>\n<|user|>\nQ2</s>\n<|assistant|>\n"
    )


@pytest.mark.parametrize("empty_system_turn", [False, True])
def test_zephyr_native_and_jinja_renderings_are_equal(empty_system_turn):
    native = ZephyrTemplate(SPECIAL_TOKENS, empty_system_turn=empty_system_turn)
    text = ChatTemplate("jinja", native.text, SPECIAL_TOKENS)
    for dialogue in [*NASTY_DIALOGUES, turns("Q"), turns("Q", system="S"), []]:
        for generation in (False, True):
            rendered = native.render(dialogue, add_generation_prompt=generation)
            assert rendered == text.render(dialogue, add_generation_prompt=generation)
            assert native.answer_spans(dialogue, rendered) == text.answer_spans(dialogue, rendered)


def test_spans_hold_what_follows_each_generation_prompt():
    template = ZephyrTemplate(SPECIAL_TOKENS)
    dialogue = turns("Q", "one", "Q", "two", system="S")
    text = template.render(dialogue, add_generation_prompt=False)
    spans = template.answer_spans(dialogue, text)
    assert [text[start:end] for start, end in spans] == ["one</s>\n", "two</s>\n"]
    assert all(text[:start].endswith("<|assistant|>\n") for start, _ in spans)


def test_what_hugging_face_templates_expect_is_there(tmp_path):
    template = jinja(
        tmp_path,
        "{%- for m in messages %}\n"
        "    {%- if loop.index > 1 %}{% break %}{% endif %}\n"
        "    {%- generation %}{{ m | tojson }}{% endgeneration %}\n"
        "{%- endfor %}{{ bos_token }}{{ pad_token }}{{ strftime_now('%Y') | length }}\n",
    )
    # Unset tokens print nothing; one newline at a template's end is dropped; `<` and umlauts are not escaped.
    assert template.render(turns("<ä>", "A"), add_generation_prompt=False) == '{"role": "user", "content": "<ä>"}<s>4'


def test_template_cannot_leave_its_sandbox(tmp_path):
    template = jinja(tmp_path, "{{ messages.__class__.__mro__ }}")
    with pytest.raises(InputError, match="cannot render"):
        template.render(turns("Q"), add_generation_prompt=False)


def test_refusals_of_templates_are_one_message(tmp_path):
    template = jinja(tmp_path, "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system!') }}{% endif %}")
    with pytest.raises(InputError, match=r"template\.jinja: it cannot render .* roles \[system, user\]: No system!"):
        template.render(turns("Q", system="S"), add_generation_prompt=False)
    zephyr = ZephyrTemplate(SPECIAL_TOKENS)
    for template in (zephyr, ChatTemplate("jinja", zephyr.text, SPECIAL_TOKENS)):
        with pytest.raises(InputError, match="unknown role"):
            template.render([{"role": "tool", "content": "x"}], add_generation_prompt=False)


def test_files_that_are_no_templates(tmp_path):
    with pytest.raises(InputError, match="not a jinja template"):
        jinja(tmp_path, "{% for %}")
    (tmp_path / "latin1.jinja").write_bytes("ä".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8 text"):
        load_template(str(tmp_path / "latin1.jinja"), SPECIAL_TOKENS, tokenizer_name="T", tokenizer_template=None)


def test_empty_system_turn_is_zephyrs_alone():
    with pytest.raises(InputError, match="only the zephyr template has it"):
        load_template("tokenizer", SPECIAL_TOKENS, tokenizer_name="T", tokenizer_template="x", empty_system_turn=True)
