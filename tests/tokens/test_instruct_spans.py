"""What counts of a conversation is what the assistant says, to the token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat import CHATML, MARKED, SPECIAL, make_tokenizer, random_chats, read_ids

from open_lm.fast_tokenizer import FastEncoder
from open_lm.tokenizer import Tokenizer, load_tokenizer
from open_lm.tokens.instruct.encoding import SegmentEncoder
from open_lm.tokens.instruct.options import LossOn
from open_lm.tokens.instruct.records import Conversation, NotUsableError, Pair
from open_lm.tokens.instruct.spans import segments_of
from open_lm.tokens.instruct.template import ChatTemplate, find_template

CHAT = Conversation(
    tuple({"role": r, "content": c} for r, c in (("user", "one"), ("assistant", "two"), ("user", "3"), ("assistant", "four ")))
)


def counted(record: Conversation | Pair, template: ChatTemplate | None, loss_on: LossOn = "assistant") -> list[str]:
    segments = segments_of(record, template, "\n", loss_on, SPECIAL)
    return [segment.text for segment in segments if segment.counts]


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["by prefixes", "by generation blocks"])
def test_the_assistants_turns_count_with_their_ends(template: str) -> None:
    assert counted(CHAT, ChatTemplate(template)) == ["two<|im_end|>", "four <|im_end|>"]
    assert counted(CHAT, ChatTemplate(template), "last") == ["four <|im_end|>"]
    assert len(counted(CHAT, ChatTemplate(template), "all")) == 1
    assert (
        "".join(s.text for s in segments_of(CHAT, ChatTemplate(template), "", "assistant", SPECIAL))
        == ChatTemplate(template).render(CHAT.messages)[0]
    )


def test_a_plain_pair_is_prompt_separator_response() -> None:
    assert segments_of(Pair("p", "r"), None, " -> ", "assistant", SPECIAL) == [("p -> ", False), ("r", True)]
    with pytest.raises(NotUsableError, match="give one with --chat-template"):
        counted(CHAT, None)
    with pytest.raises(NotUsableError, match="no token would count"):
        counted(Pair("p", ""), None)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        # thoughts of earlier turns are taken out once more follows
        ("{% for m in messages %}[{{ m.role }}]{{ m.content if m.role == 'user' or loop.last else 'x' }};{% endfor %}"
         "{% if add_generation_prompt %}[assistant]{% endif %}", "turn 1 otherwise once more follows"),
        ("{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}{% if add_generation_prompt %}[assistant]think{% endif %}",
         "the prompt of the assistant's turn 1 otherwise than that turn"),
        (r"{{ '\ud83d' }}", r"as the chat template writes it, it has half a surrogate pair .* at character 0"),
        ("{{ raise_exception('roles must alternate') }}", "does not take it: roles must alternate"),
        ("{{ messages[9].content.strip() }}", "does not take it"),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "marks 4 generations .* 2 assist"),
    ],
)  # fmt: skip
def test_a_template_whose_turns_cannot_be_found_is_refused(template: str, why: str) -> None:
    with pytest.raises(NotUsableError, match=why):
        counted(CHAT, ChatTemplate(template))


def encoder_of(tokenizer: Tokenizer) -> SegmentEncoder:
    return SegmentEncoder(FastEncoder(tokenizer), SPECIAL)


def test_ids_and_masks_are_those_of_transformers(tmp_path: Path) -> None:
    """Its own `apply_chat_template` over the same marked template."""
    from transformers import PreTrainedTokenizerFast

    folder = make_tokenizer(tmp_path, MARKED)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), chat_template=MARKED)
    tokenizer = load_tokenizer(str(folder))
    chats = [chat["messages"] for chat in random_chats(40, 1)]
    segments = [segments_of(Conversation(tuple(chat)), ChatTemplate(MARKED), "", "assistant", SPECIAL) for chat in chats]
    encoded, difference = encoder_of(tokenizer).encode(segments, 0)
    assert difference is None and encoded.inner_ends == 0
    for chat, tokens in zip(chats, np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])):
        expected = reference.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        assert read_ids(tokens).tolist() == [*expected["input_ids"], tokenizer.eot_id]
        assert (tokens >= 0).tolist() == [*map(bool, expected["assistant_masks"]), False]


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
def test_decoded_targets_are_what_the_assistant_says(kind: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(make_tokenizer(tmp_path))) if kind == "byte level" else metaspace()
    chats = [chat["messages"] for chat in random_chats(40, 2)]
    segments = [segments_of(Conversation(tuple(chat)), ChatTemplate(CHATML), "", "assistant", SPECIAL) for chat in chats]
    encoded, _ = encoder_of(tokenizer).encode(segments, 0)
    for chat, tokens in zip(chats, np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])):
        said = "".join(m["content"] + "<|im_end|>" for m in chat if m["role"] == "assistant")
        assert text_of(tokenizer, tokens[tokens >= 0]) == said
        whole = text_of(tokenizer, read_ids(tokens))
        assert whole.removeprefix(" ") == ChatTemplate(CHATML).render(chat)[0] + "<|endoftext|>"


def text_of(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """Without the decoder, which takes spaces away at the begin of what it is given."""
    if "Metaspace" not in tokenizer.json_text:
        return tokenizer.decode(ids)
    return "".join(str(tokenizer.backend.id_to_token(int(i))) for i in ids).replace("▁", " ")


def metaspace() -> Tokenizer:
    """A tokenizer that puts a space before whatever it is given."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    characters = sorted({c for chat in random_chats(200, 2) for m in chat["messages"] for c in m["content"]} | set("▁\n.aesytmuirn10é"))
    vocabulary = [*SPECIAL, *characters, "<unk>"]
    backend = Backend(models.BPE({token: i for i, token in enumerate(vocabulary)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Split(Regex("\n"), "isolated")]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(SPECIAL)
    return Tokenizer(backend.to_str(), "metaspace")


@pytest.mark.parametrize(
    ("template", "counts"),
    [
        (CHATML, False),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant: ' if add_generation_prompt }}", True),
    ],
    ids=["a turn ends by itself", "a turn ends with the end of text"],
)
def test_the_end_of_text_counts_where_nothing_else_ends_the_turn(template: str, counts: bool, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(make_tokenizer(tmp_path)))
    encoded, _ = encoder_of(tokenizer).encode([segments_of(CHAT, ChatTemplate(template), "", "assistant", SPECIAL)], 0)
    assert encoded.tokens[-1] == (tokenizer.eot_id if counts else ~tokenizer.eot_id)


def test_an_end_of_text_is_not_doubled_and_inner_ones_are_counted(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(make_tokenizer(tmp_path)))
    segments = [segments_of(Pair("p", text), None, "\n", "assistant", SPECIAL) for text in ("a<|endoftext|>", "a<|endoftext|>b", "a")]
    encoded, _ = encoder_of(tokenizer).encode(segments, 0)
    ends = [(read_ids(t) == tokenizer.eot_id).sum() for t in np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])]
    assert ends == [1, 2, 1] and encoded.inner_ends == 1


def found(folder: Path, chosen: str = "auto", day: str | None = None) -> ChatTemplate | None:
    return find_template(chosen, str(folder), load_tokenizer(str(folder)), day)


def test_templates_are_found_where_they_lie(tmp_path: Path) -> None:
    folder = make_tokenizer(tmp_path / "a")
    assert found(folder) == found(folder / "tokenizer.json") == ChatTemplate(CHATML, {"eos_token": "<|endoftext|>"})
    assert found(folder, "plain") is None
    (folder / "chat_template.jinja").write_text(MARKED)
    assert (template := found(folder)) is not None and template.text == MARKED
    (tmp_path / "own.jinja").write_text("{{ bos_token }}")
    assert (template := found(folder, str(tmp_path / "own.jinja"))) is not None and template.text == "{{ bos_token }}"
    assert found(make_tokenizer(tmp_path / "b", None)) is None
    several: Any = {"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]}
    (tmp_path / "b/tokenizer_config.json").write_text(json.dumps(several))
    assert (template := found(tmp_path / "b")) is not None and template.text == "y"


def test_a_template_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    folder = make_tokenizer(tmp_path)
    for text, why in (("{% for %}", "can't be used"), ("{{ strftime_now('%d') }}", "give one with --template-date")):
        (folder / "t.jinja").write_text(text)
        with pytest.raises(ValueError, match=rf"^--chat-template .*{why}.*$"):
            found(folder, str(folder / "t.jinja"))
    assert (template := found(folder, str(folder / "t.jinja"), "2026-01-31")) is not None
    assert template.render(CHAT.messages)[0] == "31"
    with pytest.raises(ValueError, match="no such file"):
        found(folder, str(folder / "none.jinja"))


def test_a_template_reaches_nothing_outside(tmp_path: Path) -> None:
    for text in ("{{ messages.__class__.__mro__ }}", "{% include '/etc/passwd' %}", "{{ ''.__class__.__base__.__subclasses__() }}"):
        with pytest.raises(NotUsableError):
            ChatTemplate(text).render(CHAT.messages)


@pytest.mark.parametrize(
    "text", ["{{ messages|length // 0 }}", "{% for i in range(1000000) %}{% endfor %}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"]
)
def test_a_template_that_fails_in_arithmetic_or_depth_does_not_take_the_conversation(text: str) -> None:
    with pytest.raises(NotUsableError, match="the chat template does not take it: ."):
        ChatTemplate(text).render(CHAT.messages)
