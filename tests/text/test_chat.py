"""Of a conversation exactly the answers are scored, whatever template writes it."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klcli.choices import Score
from klcli.errors import CorpusError, Notice
from klcli.sources.hf.jinja import render
from klcli.text.chat import REASONING_MARKS, render_all
from klcli.text.corpus import Document
from klcli.text.examples import Conversation
from klcli.text.scope import Scope
from klcli.text.templates import DEFAULT, WITH_TOOLS, ChatTemplate, read_template
from tests.text import chat_templates as shapes

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = (
    ("user", "Hi, 東京!"), ("assistant", "Naïve 🙂."),
    ("user", "And?"), ("assistant", "No more."),
)  # fmt: skip
THOUGHT = (("user", "2+2?"), ("assistant", "<think>\nadd\n</think>\n\n4"))
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


def template_of(source: str, **more: str) -> ChatTemplate:
    return ChatTemplate(
        name="model", sources={DEFAULT: source, **more}, special_tokens=SPECIAL, jinja=render
    )


def conversation(*messages: tuple[str, str] | dict[str, Any], **more: Any) -> Conversation:
    made = tuple(
        one if isinstance(one, dict) else {"role": one[0], "content": one[1]} for one in messages
    )
    return Conversation(**{"name": "chat#1", "messages": made, **more})


def rendered(
    source: str | ChatTemplate, *conversations: Conversation, **options: Any
) -> tuple[list[Document], list[Notice]]:
    template = source if isinstance(source, ChatTemplate) else template_of(source)
    documents, notices = render_all(conversations, template, Scope(**options))
    for document in documents:
        check_tiling(document)
    return documents, notices


def check_tiling(document: Document) -> None:
    """The parts of a document go through all of it, and none is empty."""
    borders = [0, *(part.stop for part in document.parts)]
    assert [part.start for part in document.parts] == borders[:-1]
    assert borders == sorted(set(borders))
    assert borders[-1] == len(document.content)


def scored(document: Document) -> list[str]:
    """The runs of text that are scored: neighbours are one."""
    runs: list[bytes] = []
    stop = -1
    for part in (one for one in document.parts if one.is_scored):
        if part.start != stop:
            runs.append(b"")
        runs[-1] += document.content[part.start : part.stop]
        stop = part.stop
    return [run.decode() for run in runs]


def all_scored(documents: Sequence[Document]) -> list[str]:
    return [run for document in documents for run in scored(document)]


def roles(document: Document) -> list[tuple[str, str]]:
    return [(p.role, document.content[p.start : p.stop].decode()) for p in document.parts]


def said(notices: Sequence[Notice], code: str) -> str:
    (found,) = [one.message for one in notices if one.code == code]
    return found


@pytest.mark.parametrize("family", shapes.FAMILIES.values(), ids=shapes.FAMILIES.keys())
def test_each_answer_is_scored_with_its_end_and_nothing_else(family: shapes.Family) -> None:
    (document,), notices = rendered(family.source, conversation(*CHAT))
    answers = [content for role, content in CHAT if role == "assistant"]
    assert scored(document) == [family.before + one + family.behind for one in answers]
    assert document.is_rendered
    assert document.name == "chat#1"
    assert said(notices, "chat_template").startswith("2 answers in 1 conversation rendered")


@pytest.mark.parametrize("family", shapes.FAMILIES.values(), ids=shapes.FAMILIES.keys())
def test_a_question_at_the_end_is_not_scored(family: shapes.Family) -> None:
    (document,), _ = rendered(family.source, conversation(*CHAT, ("user", "Sure?")))
    assert scored(document)[-1] == f"{family.before}No more.{family.behind}"
    assert "Sure?" not in document.text


PIECES = st.lists(
    st.sampled_from(
        ["<|im_end|>", "<|im_start|>assistant\n", "\n", " ", "a", "東", "🙂", "\x1b", "{{ x }}",
         "assistant", *(mark for pair in REASONING_MARKS for mark in pair)]
    ),
    min_size=1, max_size=8,
).map("".join)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(contents=st.lists(PIECES, min_size=4, max_size=4))
@pytest.mark.parametrize("source", [shapes.CHATML, shapes.MARKED, shapes.SMOLLM_2])
def test_marks_of_templates_inside_messages_change_nothing(
    source: str, contents: list[str]
) -> None:
    messages = [(role, text) for (role, _), text in zip(CHAT, contents, strict=True)]
    answers = [text for role, text in messages if role == "assistant"]
    wanted = [f"{text}<|im_end|>" for text in answers if text.strip()]
    if not wanted:
        with pytest.raises(CorpusError, match="the answer is empty"):
            rendered(source, conversation(*messages))
        return
    documents, _ = rendered(source, conversation(*messages))
    assert all_scored(documents) == wanted


@settings(deadline=None, max_examples=100)
@given(contents=st.lists(st.text(min_size=1), min_size=4, max_size=4))
@pytest.mark.parametrize("family", shapes.FAMILIES.values(), ids=shapes.FAMILIES.keys())
def test_any_text_is_tiled_by_parts_and_read_by_one_template(
    family: shapes.Family, contents: list[str]
) -> None:
    texts = [text.encode(errors="replace").decode() + "." for text in contents]
    messages = [(role, text) for (role, _), text in zip(CHAT, texts, strict=True)]
    documents, _ = rendered(family.source, conversation(*messages))
    runs = all_scored(documents)
    assert len(runs) == 2
    for run, text in zip(runs, texts[1::2], strict=True):
        assert text.strip() in run
        assert len(run) <= len(family.before + text + family.behind)


def test_marks_are_told_from_prefixes() -> None:
    _, by_marks = rendered(shapes.MARKED, conversation(*CHAT))
    _, by_prefixes = rendered(shapes.CHATML, conversation(*CHAT))
    assert "answers found by its generation marks" in said(by_marks, "chat_template")
    assert "answers found by what each adds to its prompt" in said(by_prefixes, "chat_template")


@pytest.mark.parametrize("source", [shapes.MARKED_ONCE, shapes.MARKED_IN_A_MACRO])
def test_marks_that_are_not_those_of_the_answers_are_not_used_and_that_is_said(source: str) -> None:
    _, notices = rendered(source, conversation(*CHAT))
    told = "what each adds to its prompt, for its generation marks are not those of the answers"
    assert told in said(notices, "chat_template")


@pytest.mark.parametrize(
    ("score", "wanted"),
    [
        ("assistant", ["Naïve 🙂.<|im_end|>", "No more.<|im_end|>"]),
        ("last", ["No more.<|im_end|>"]),
    ],
)
@pytest.mark.parametrize("source", [shapes.CHATML, shapes.MARKED])
def test_all_answers_or_the_last_are_scored(source: str, score: Score, wanted: list[str]) -> None:
    (document,), _ = rendered(source, conversation(*CHAT), score=score)
    assert scored(document) == wanted


@pytest.mark.parametrize("source", [shapes.CHATML, shapes.MARKED, shapes.QWEN_3, shapes.GPT_OSS])
def test_a_whole_conversation_is_scored_once_from_its_first_byte(source: str) -> None:
    talk = conversation(*CHAT, ("user", "Sure?"))
    (document,), notices = rendered(source, talk, score="all")
    assert scored(document) == [document.text]
    assert "Sure?" in document.text
    assert said(notices, "chat_template").startswith("1 conversation rendered")


def test_a_whole_conversation_needs_no_answer() -> None:
    (document,), _ = rendered(shapes.CHATML, conversation(CHAT[0]), score="all")
    assert scored(document) == ["<|im_start|>user\nHi, 東京!<|im_end|>\n"]


def test_messages_that_are_given_are_not_scored() -> None:
    (document,), _ = rendered(shapes.CHATML, conversation(*CHAT, given=3))
    assert scored(document) == ["No more.<|im_end|>"]


def test_parts_say_whose_text_is_in_which_turn() -> None:
    (document,), _ = rendered(shapes.CHATML, conversation(("system", "Be kind."), *CHAT))
    assert [(part.role, part.turn) for part in document.parts] == [
        ("system", 1), ("user", 1), ("template", 1), ("assistant", 1), ("template", 1),
        ("user", 2), ("template", 2), ("assistant", 2), ("template", 2),
    ]  # fmt: skip
    assert roles(document)[2:5] == [
        ("template", "<|im_start|>assistant\n"),
        ("assistant", "Naïve 🙂.<|im_end|>"),
        ("template", "\n"),
    ]


def test_a_system_prompt_inside_of_the_first_question_is_the_template_s() -> None:
    (document,), _ = rendered(shapes.LLAMA_2, conversation(("system", "Be kind."), *CHAT))
    assert scored(document) == [" Naïve 🙂. </s>", " No more. </s>"]
    assert "<<SYS>>\nBe kind." in document.text


def test_groups_are_kept() -> None:
    (document,), _ = rendered(shapes.CHATML, conversation(*CHAT, group="de"))
    assert document.group == "de"


class TestReasoning:
    """What a model thinks before it answers."""

    def test_it_is_a_part_of_its_own(self) -> None:
        (document,), _ = rendered(shapes.CHATML, conversation(*THOUGHT))
        assert roles(document)[2:4] == [
            ("reasoning", "<think>\nadd\n</think>"),
            ("assistant", "\n\n4<|im_end|>"),
        ]

    def test_it_is_not_scored_if_it_shall_not(self) -> None:
        documents, _ = rendered(shapes.CHATML, conversation(*THOUGHT), score_reasoning=False)
        assert all_scored(documents) == ["\n\n4<|im_end|>"]

    @pytest.mark.parametrize(("opening", "closing"), REASONING_MARKS)
    def test_the_marks_of_several_families_are_known(self, opening: str, closing: str) -> None:
        talk = conversation(CHAT[0], ("assistant", f"{opening}why{closing}this"))
        (document,), _ = rendered(shapes.CHATML, talk)
        assert ("reasoning", f"{opening}why{closing}") in roles(document)

    def test_marks_inside_of_others_are_a_part_of_them(self) -> None:
        thought = "<think>a <reasoning>b</reasoning> c</think>"
        talk = conversation(CHAT[0], ("assistant", f"{thought}d"))
        (document,), _ = rendered(shapes.CHATML, talk)
        assert roles(document)[2:4] == [("reasoning", thought), ("assistant", "d<|im_end|>")]

    def test_a_mark_that_is_only_spoken_of_opens_nothing(self) -> None:
        talk = conversation(CHAT[0], ("assistant", "Write <think> first."))
        (document,), _ = rendered(shapes.CHATML, talk)
        assert ("assistant", "Write <think> first.<|im_end|>") in roles(document)

    def test_the_prompt_may_have_opened_it(self) -> None:
        talk = conversation(CHAT[0], ("assistant", "why\n</think>\n\nthis"))
        (document,), _ = rendered(shapes.OPENED_BY_THE_PROMPT, talk)
        assert ("reasoning", "why\n</think>") in roles(document)
        assert scored(document) == ["why\n</think>\n\nthis<|im_end|>"]

    def test_a_conversation_of_nothing_else_is_left_out_if_it_is_not_scored(self) -> None:
        talk = conversation(CHAT[0], ("assistant", "<think>no end"))
        with pytest.raises(CorpusError, match="nothing but reasoning"):
            rendered(shapes.CHATML, talk, score_reasoning=False)

    def test_answers_that_later_lose_theirs_have_documents_of_their_own(self) -> None:
        talk = conversation(
            *THOUGHT, ("user", "3+3?"), ("assistant", "<think>\nadd\n</think>\n\n6")
        )
        documents, _ = rendered(shapes.QWEN_3, talk)
        assert [one.name for one in documents] == ["chat#1, turn 1", "chat#1, turn 2"]
        thought = "<think>\nadd\n</think>\n\n"
        assert all_scored(documents) == [f"{thought}4<|im_end|>", f"{thought}6<|im_end|>"]
        assert "add" not in documents[1].text.split("3+3?")[0]

    def test_fields_of_messages_are_read(self) -> None:
        answer = {"role": "assistant", "content": "4", "reasoning_content": "add"}
        documents, _ = rendered(shapes.QWEN_3, conversation(THOUGHT[0], answer))
        assert all_scored(documents) == ["<think>\nadd\n</think>\n\n4<|im_end|>"]

    def test_channels_are_read(self) -> None:
        first = {"role": "assistant", "content": "4", "thinking": "add"}
        second = {"role": "assistant", "content": "6", "thinking": "more"}
        talk = conversation(THOUGHT[0], first, ("user", "3+3?"), second)
        documents, _ = rendered(shapes.GPT_OSS, talk, score_reasoning=False)
        final = "<|start|>assistant<|channel|>final<|message|>"
        assert all_scored(documents) == [f"{final}4<|return|>", f"{final}6<|return|>"]
        analysis = "<|channel|>analysis<|message|>more<|end|>"
        assert ("reasoning", analysis) in roles(documents[1])

    def test_names_differ_where_one_turn_has_several_answers(self) -> None:
        talk = conversation(
            THOUGHT[0], ("assistant", "look"), ("tool", "4"), ("assistant", "4"), CHAT[0], CHAT[1]
        )
        documents, _ = rendered(shapes.GPT_OSS, talk)
        assert [one.name for one in documents] == [
            "chat#1, turn 1", "chat#1, turn 1, answer 2", "chat#1, turn 2",
        ]  # fmt: skip


class TestLeftOut:
    """What cannot be scored is counted and named, with the reason."""

    def test_an_answer_whose_text_does_not_continue_the_prompt(self) -> None:
        why = r"does not continue the prompt \(chat#1\): give another with --chat-template FILE"
        with pytest.raises(CorpusError, match=why):
            rendered(shapes.DEEPSEEK_R1, conversation(*THOUGHT))

    def test_a_conversation_whose_system_turn_the_template_refuses(self) -> None:
        refused = conversation(("system", "Be kind."), *CHAT, name="chat#2")
        documents, notices = rendered(shapes.GEMMA, conversation(*CHAT), refused)
        assert [one.name for one in documents] == ["chat#1"]
        assert said(notices, "left_out") == (
            "1 left out, for its chat template fails: System role not supported (chat#2)"
        )

    def test_roles_that_the_template_refuses(self) -> None:
        refused = conversation(CHAT[0], CHAT[2], CHAT[3], name="chat#2")
        _, notices = rendered(shapes.LLAMA_2, conversation(*CHAT), refused)
        assert "must alternate" in said(notices, "left_out")

    def test_an_answer_at_the_start_that_nothing_asks_for(self) -> None:
        talk = conversation(CHAT[1], *CHAT)
        documents, notices = rendered(shapes.GEMMA, talk)
        assert len(all_scored(documents)) == 2
        assert "the chat template fails on what stands before it" in said(notices, "left_out")

    def test_empty_answers(self) -> None:
        talk = conversation(CHAT[0], ("assistant", " \n"), *CHAT[2:])
        documents, notices = rendered(shapes.CHATML, talk)
        assert all_scored(documents) == ["No more.<|im_end|>"]
        assert said(notices, "left_out") == "1 left out, for the answer is empty (chat#1)"

    def test_the_last_answer_alone_if_it_is_empty(self) -> None:
        with pytest.raises(CorpusError, match="the answer is empty"):
            rendered(shapes.CHATML, conversation(*CHAT[:3], ("assistant", "")), score="last")

    def test_conversations_without_an_answer(self) -> None:
        with pytest.raises(CorpusError, match=r"there is no answer in it \(chat#1\)"):
            rendered(shapes.CHATML, conversation(CHAT[0]))

    def test_few_are_named_and_all_are_counted(self) -> None:
        talks = [conversation(CHAT[0], name=f"chat#{n}") for n in range(2, 2000)]
        _, notices = rendered(shapes.CHATML, conversation(*CHAT), *talks)
        assert said(notices, "left_out") == (
            "1,998 left out, for there is no answer in it (chat#2, chat#3, chat#4 …)"
        )

    def test_few_reasons_are_said(self) -> None:
        source = "{% if messages[0].role == 'system' %}{{ raise_exception(messages[0].content) }}"
        talks = [conversation(("system", f"No {n}"), *CHAT, name=f"chat#{n}") for n in range(9)]
        _, notices = rendered(f"{source}{{% endif %}}{shapes.CHATML}", conversation(*CHAT), *talks)
        assert said(notices, "left_out").endswith("No 2 (chat#2); 6 for other reasons")

    def test_all_of_them_stop_the_run_in_one_line(self) -> None:
        with pytest.raises(CorpusError, match="nothing to score: 1 left out, for its") as caught:
            rendered(shapes.REFUSES, conversation(*CHAT))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", shapes.HOSTILE.values(), ids=shapes.HOSTILE.keys())
def test_the_sandbox_refuses_hostile_and_broken_templates(source: str) -> None:
    talk = conversation(*CHAT)
    with pytest.raises(CorpusError, match="its chat template fails"):
        rendered(source, talk)
    assert talk == conversation(*CHAT)


class TestTools:
    """Tools, and calls of them."""

    CALLS = (
        CHAT[0],
        {
            "role": "assistant", "content": "",
            "tool_calls": [{"function": {"name": "look", "arguments": '{"at": "東"}'}}],
        },
        ("tool", "here"),
        ("assistant", "Here."),
    )  # fmt: skip

    def test_the_template_is_given_them(self) -> None:
        (document,), notices = rendered(shapes.TOOLS, conversation(*CHAT, tools=(TOOL,)))
        assert json.dumps(TOOL) in document.text
        assert len(notices) == 1

    def test_a_template_that_does_not_read_them_is_named(self) -> None:
        _, notices = rendered(shapes.CHATML, conversation(*CHAT, tools=(TOOL,)))
        assert "does not show tools" in said(notices, "tools_not_shown")

    def test_a_template_of_their_own_is_used_for_them_alone(self) -> None:
        template = template_of(shapes.CHATML, **{WITH_TOOLS: shapes.TOOLS})
        with_tools = conversation(*CHAT, tools=(TOOL,), name="chat#2")
        first, second = rendered(template, conversation(*CHAT), with_tools)[0]
        assert "look" not in first.text
        assert "look" in second.text

    def test_calls_are_scored_with_arguments_as_the_template_wants_them(self) -> None:
        (document,), _ = rendered(shapes.TOOLS, conversation(*self.CALLS))
        assert scored(document) == [
            "<tool_call>look(at=東)</tool_call><|im_end|>",
            "Here.<|im_end|>",
        ]
        assert {part.turn for part in document.parts} == {1}

    def test_arguments_are_handed_on_as_they_are_where_that_works(self) -> None:
        source = shapes.CHATML.replace(
            "{{ m.content }}",
            "{{ m.content }}"
            "{% for call in m.tool_calls or [] %}{{ call.function.arguments }}{% endfor %}",
        )
        (document,), _ = rendered(source, conversation(*self.CALLS))
        assert scored(document)[0] == '{"at": "東"}<|im_end|>'


def test_a_template_that_writes_the_date_is_named() -> None:
    _, notices = rendered(shapes.DATED, conversation(*CHAT))
    assert "today's date" in said(notices, "dated_template")


def test_a_file_that_is_no_text_is_no_template(tmp_path: Any) -> None:
    path = tmp_path / "chat.jinja"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CorpusError, match=f"cannot read the chat template {path}"):
        read_template(str(path))
    with pytest.raises(CorpusError, match="No such file"):
        read_template(str(tmp_path / "none.jinja"))
