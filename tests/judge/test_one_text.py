"""Gates on one of several texts: which is meant, and what they are held against."""

import re
from collections.abc import Sequence

import pytest

from klcli.errors import UsageError
from klcli.judge.gate import Gate
from klcli.judge.grammar import parse_gate
from klcli.judge.metrics import COMPARE_METRICS
from klcli.judge.one_text import check_texts, corpus_or_group

CORPORA = ["data/wiki.txt", "a/news.txt", "b/news.txt"]
GROUPS = ["german", "wiki.de"]


def parse(text: str) -> Gate:
    return parse_gate(text, COMPARE_METRICS)


@pytest.mark.parametrize(
    ("text", "of"),
    [
        ("kl<=1", None),
        ("wiki.txt:kl<=1", "wiki.txt"),
        (" wiki.txt : kl.mean <= 1", "wiki.txt"),
        ("C:\\a<b.txt:kl<=1", "C:\\a<b.txt"),
        ("hf://datasets/x:kl.p99<=1.1*baseline", "hf://datasets/x"),
        ("Zürich 2:top1_agreement>=98%", "Zürich 2"),
    ],
)
def test_the_name_of_a_text_stands_before_the_last_colon(text: str, of: str | None) -> None:
    gate = parse(text)
    assert (gate.text, gate.of) == (text, of)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (":kl<=1", "has no name of a text before the colon"),
        ("wiki.txt:kl=1", "did you mean 'wiki.txt:kl<=1'"),
        ("wiki.txt:kld<=1", "unknown metric 'kld'"),
        ("kl<=1:wiki.txt", "is not a gate"),
    ],
)
def test_a_gate_on_a_text_is_checked_as_any_other(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        parse(text)


@pytest.mark.parametrize(
    ("of", "found"),
    [
        ("data/wiki.txt", 0), ("wiki.txt", 0), ("b/news.txt", 2), ("german", "german"),
        ("wiki.de", "wiki.de"),
    ],
)  # fmt: skip
def test_a_text_is_meant_by_its_name_or_the_last_part_of_it(of: str, found: int | str) -> None:
    assert corpus_or_group(parse(f"{of}:kl<=1"), CORPORA, GROUPS) == found


@pytest.mark.parametrize(
    ("of", "groups", "says"),
    [
        ("news.txt", GROUPS, "which news.txt? Write one of a/news.txt, b/news.txt"),
        ("wiki.txt", ["wiki.txt"], "which wiki.txt? Write one of data/wiki.txt, wiki.txt"),
        ("germn", GROUPS, "unknown text 'germn'; did you mean 'german'? Use one of data/wiki.txt"),
        ("nothing at all", [], "use one of data/wiki.txt, a/news.txt, b/news.txt"),
    ],
)
def test_a_text_that_is_not_there_is_a_usage_error(
    of: str, groups: Sequence[str], says: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        check_texts([parse("kl<=1"), parse(f"{of}:kl<=1")], CORPORA, groups)


def test_without_any_text_the_name_is_to_be_left_out() -> None:
    with pytest.raises(UsageError, match="no text has a name here"):
        check_texts([parse("wiki.txt:kl<=1")], [], [])
