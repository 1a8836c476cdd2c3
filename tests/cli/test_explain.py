"""klcli explain: what metrics mean, without a model."""

import pytest

from klcli.judge.grammar import parse_gate
from klcli.judge.metrics import METRICS
from klcli.render.explain import TERMS, examples
from tests.running import Run


def test_without_a_name_all_metrics_and_words_are_listed(klcli: Run) -> None:
    done = klcli("explain")
    assert done.code == 0
    assert all(name in done.out for name in (*METRICS, *TERMS))


@pytest.mark.parametrize(
    "name", ["kl", "kl.p99", "ppl", "ppl_ratio", "flips", *TERMS, "Noise floor"]
)
def test_a_name_is_explained_as_gates_write_it(klcli: Run, name: str) -> None:
    done = klcli("explain", name)
    assert done.code == 0
    assert done.err == ""


def test_an_entry_has_formula_unit_direction_gates_and_source(klcli: Run) -> None:
    out = klcli("explain", "kl").out
    for part in ("Σ p ln(p/q)", "nats per token", "lower", "kl.mean<=0.01", "Kullback"):
        assert part in out


@pytest.mark.parametrize(
    ("name", "says"),
    [("kld", "did you mean 'kl'"), ("noise", "did you mean 'noise floor'"), ("kl.p9", "no field")],
)
def test_an_unknown_name_exits_2_with_a_suggestion(klcli: Run, name: str, says: str) -> None:
    done = klcli("explain", name)
    assert done.code == 2
    assert says in done.err


@pytest.mark.parametrize("name", METRICS)
def test_the_gates_that_are_shown_are_gates(name: str) -> None:
    for text in examples(METRICS[name]):
        assert parse_gate(text, {name: METRICS[name].fields}).metric == name


@pytest.mark.parametrize(("word", "meant"), [("compar", "compare"), ("explian", "explain")])
def test_a_misspelt_command_is_answered_with_the_one_that_was_meant(
    klcli: Run, word: str, meant: str
) -> None:
    done = klcli(word)
    assert done.code == 2
    assert meant in done.err
