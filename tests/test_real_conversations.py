"""A real model's conversation: the scored tokens are exactly those of the answers."""

import pytest

from klcli.sources.hf.model import ModelSource
from klcli.text.chat import render_all
from klcli.text.corpus import Document
from klcli.text.cutting import encode_rendered
from klcli.text.examples import Conversation
from klcli.text.parts import parts_in_tokens
from klcli.text.scope import Scope
from klcli.text.templates import DEFAULT, ChatTemplate
from klcli.text.vocabulary import Vocabulary
from tests.text.chat_templates import MARKED

pytestmark = pytest.mark.real

ANSWERS = (" Naïve 🙂 **yes**.\n\n```py\nprint(1)\n```", "東京 is 7 <b>big</b>", "\n1,234.5 ")


def conversation(*answers: str) -> Conversation:
    messages = [{"role": "system", "content": "Be kind."}]
    for answer in answers:
        messages += [
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": answer},
        ]
    return Conversation(name="chat#1", messages=tuple(messages))


def rendered(vocabulary: Vocabulary, *, marked: bool) -> Document:
    template = vocabulary.chat
    assert template is not None
    if marked:
        template = ChatTemplate(
            name="marked",
            sources={DEFAULT: MARKED},
            special_tokens=template.special_tokens,
            jinja=template.jinja,
        )
    (document,), _ = render_all([conversation(*ANSWERS)], template, Scope())
    return document


@pytest.mark.parametrize("marked", [False, True])
def test_the_scored_tokens_decode_to_the_answers_with_their_ends(
    smollm2: ModelSource, *, marked: bool
) -> None:
    vocabulary = smollm2.vocabulary
    document = rendered(vocabulary, marked=marked)
    encoding = encode_rendered(document, vocabulary)
    parts, lost = parts_in_tokens(document.parts, encoding.ends)
    decoded = [
        b"".join(vocabulary.bytes_of(one) for one in encoding.ids[p.start : p.stop].tolist())
        for p in parts
        if p.is_scored
    ]
    assert not lost
    assert [one.decode() for one in decoded] == [f"{answer}<|im_end|>" for answer in ANSWERS]
