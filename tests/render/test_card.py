"""An entry of a model card, as huggingface_hub reads it."""

import io
import math
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from klcli.judge.report import Report
from klcli.render.card import render_card
from klcli.render.text import visible
from tests.render import golden
from tests.render.reports import (
    HOSTILE,
    compare_metrics,
    compare_report,
    corpus,
    gated_report,
    hostile_report,
    perplexity_report,
)


def yaml_of(report: Report) -> str:
    stream = io.StringIO(newline="")
    render_card(report, stream)
    return stream.getvalue()


def results_of(report: Report) -> tuple[str, dict[str, EvalResult]]:
    """The model's name, and the results by the names of the metrics."""
    name, results = model_index_to_eval_results(yaml.safe_load(yaml_of(report))["model-index"])
    return name, {one.metric_name or "": one for one in results}


@pytest.mark.parametrize(
    ("name", "report"), [("gated", gated_report()), ("perplexity", perplexity_report())]
)
def test_a_card_looks_as_it_should(name: str, report: Report) -> None:
    golden.check(f"{name}-card.yaml", yaml_of(report))


def test_the_entry_is_that_of_the_candidate() -> None:
    name, results = results_of(compare_report())
    assert name == "candidate"
    kl = results["KL(ref ‖ cand), mean"]
    assert (kl.task_type, kl.dataset_name) == ("text-generation", "corpus.txt")
    assert (kl.metric_type, kl.metric_value) == ("kl", 0.0123456)


def test_a_metric_says_its_unit_direction_text_and_protocol() -> None:
    arguments = results_of(compare_report())[1]["KL(ref ‖ cand), mean"].metric_args
    assert arguments is not None
    assert (arguments["unit"], arguments["better"]) == ("nats per token", "lower")
    assert arguments["direction"] == "KL(reference‖candidate)"
    assert arguments["reference"] == "models/reference"
    assert arguments["corpus"] == [{"name": "corpus.txt", "sha256": "cd31"}]
    assert (arguments["protocol"], arguments["context"]) == ("rolling", 64)
    assert arguments["interval_95"] == pytest.approx([0.9 * 0.0123456, 1.1 * 0.0123456])
    assert (arguments["tokens"], arguments["klcli"]) == (3584, "0.1.0")


@pytest.mark.parametrize(
    "report", [compare_report(), gated_report(), perplexity_report(), hostile_report()]
)
def test_a_card_is_read_and_written_again(report: Report) -> None:
    page = f"---\n{yaml_of(report)}---\n# A model\n"
    data = ModelCard(page).data
    assert isinstance(data, ModelCardData)
    written: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    assert written["model-index"] == yaml.safe_load(yaml_of(report))["model-index"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_text_stays_what_it_is(name: str) -> None:
    text = HOSTILE[name]
    report = compare_report(
        models={role: {"source": text} for role in ("reference", "candidate")},
        corpora=[corpus(text, compare_metrics())],
    )
    _, results = results_of(report)
    shown = visible(text, keep_spaces=True)
    assert {one.dataset_name for one in results.values()} == {shown}


def test_what_is_not_known_is_left_out() -> None:
    _, results = results_of(compare_report(metrics=compare_metrics(math.nan)))
    assert not [name for name in results if name.startswith("KL")]
    assert "top-1 agreement" in results


def test_infinity_is_a_word_as_in_json() -> None:
    _, results = results_of(compare_report(metrics=compare_metrics(math.inf)))
    assert results["KL(ref ‖ cand), mean"].metric_value == "inf"


def test_a_lower_bound_is_said() -> None:
    _, results = results_of(compare_report(lower_bounds=["kl"]))
    bounds = {name: one.metric_args.get("lower_bound") for name, one in results.items()
              if one.metric_args is not None}  # fmt: skip
    assert bounds["KL(ref ‖ cand), mean"] is True
    assert bounds["top-1 agreement"] is None


def test_masked_models_have_their_task() -> None:
    protocol = {"name": "masked", "context": 64}
    _, results = results_of(compare_report(protocol=protocol))
    assert {one.task_type for one in results.values()} == {"fill-mask"}
    assert "pseudo-perplexity cand/ref" in results
