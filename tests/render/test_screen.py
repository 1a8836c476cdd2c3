"""The first screen, at the widths of terminals, in every encoding, whatever the report holds."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from rich.cells import cell_len

from klcli.errors import KlcliError, Notice
from klcli.judge.report import Distribution, Finding, Report
from tests.render import golden
from tests.render.reports import (
    ALONG,
    COUNTS,
    DISTRIBUTION,
    compare_metrics,
    compare_report,
    corpus,
    flips,
    gate,
    gated_report,
    hostile_report,
    mean,
    on_terminal,
    outlier,
    perplexity_metrics,
    perplexity_report,
    share,
    value,
)

FLOOR = {"by": "batch", "kl": 0.0001, "tokens": 512}


def metrics(**changes: Any) -> dict[str, Any]:
    return {**compare_metrics(), **changes}


def identical_report() -> Report:
    """Two models that predict the same to the last bit."""
    none = replace(DISTRIBUTION, counts=[0] * 100, zero=3584, below=0)
    nothing = metrics(
        kl=mean(0.0),
        perplexity_candidate=value(8.50896),
        perplexity_ratio=value(1.0, ci_low=1.0, ci_high=1.0),
        top1_agreement=share(1.0, ci_low=0.9989, ci_high=1.0),
        flips=flips(lost=0, gained=0, net=0.0, net_low=-0.001, net_high=0.001, p=1.0),
    )
    return compare_report(
        metrics=nothing,
        outliers=[],
        distribution=none,
        along=replace(ALONG, means=[0.0] * 64),
        warnings=[Notice(code="same_model", message="a and b have the same weights")],
    )


def infinite_report() -> Report:
    """A model that gives probability 0 to what the other expects."""
    return compare_report(
        metrics=metrics(
            kl=mean(math.inf, median=0.25, max=math.inf),
            perplexity_candidate=value(math.inf),
            perplexity_ratio=value(math.inf),
        ),
        distribution=replace(DISTRIBUTION, infinite=2),
        along=replace(ALONG, means=[0.25, math.inf, None, 0.5]),
        outliers=[outlier(kl=math.inf)],
        warnings=[Notice(code="infinite", message="at 2 tokens a model gives probability 0")],
    )


def bounded_report() -> Report:
    """A comparison with lists of top tokens."""
    return compare_report(
        lower_bounds=("kl", "kl_reverse", "jsd", "tv"),
        warnings=[Notice(code="lower_bounds", message="only the most probable tokens are known")],
    )


def masked_report() -> Report:
    protocol = {"name": "masked", "context": 64, "pll": "original"}
    return compare_report(protocol=protocol)


def explained_report() -> Report:
    """A comparison with a noise floor, findings, and a gate that is open."""
    findings = [
        Finding(cause="settings", message=f"the configs differ: {'rope_theta ' * 30}", evidence={}),
        Finding(cause="share", message="digits: 2% of the tokens carry 61% of the KL", evidence={}),
        Finding(cause="not_seen", message="no window is longer", evidence={}),
    ]
    opened = gate(
        "top1_agreement>=0.97", 0.9665, 0.97, verdict="inconclusive", ci_low=0.96, ci_high=0.972,
        reason="the limit lies inside the interval; about 9,000 more tokens would decide",
    )  # fmt: skip
    return compare_report(
        noise_floor=FLOOR, findings=findings, gates=[opened], verdict="inconclusive"
    )


REPORTS = {
    "compare": compare_report(),
    "gated": gated_report(),
    "identical": identical_report(),
    "infinite": infinite_report(),
    "bounded": bounded_report(),
    "masked": masked_report(),
    "explained": explained_report(),
    "perplexity": perplexity_report(),
    "corpora": perplexity_report(
        corpora=[corpus("a.txt", perplexity_metrics()), corpus("b.txt", perplexity_metrics(0.7))],
        macro={"nll": 1.42, "perplexity": 4.14},
    ),
}
HOSTILE = hostile_report()


def first_line(report: Report) -> str:
    return on_terminal(report, 120).split("\n", 1)[0]


# How it looks


@pytest.mark.parametrize("name", REPORTS)
def test_it_looks_as_it_should(name: str) -> None:
    golden.check(f"screen-{name}.txt", on_terminal(REPORTS[name]))


@pytest.mark.parametrize("width", [60, 120])
def test_it_looks_as_it_should_at_other_widths(width: int) -> None:
    golden.check(f"screen-gated-{width}.txt", on_terminal(REPORTS["gated"], width))
    golden.check(f"screen-compare-{width}.txt", on_terminal(REPORTS["compare"], width))


def test_hostile_text_looks_as_it_should() -> None:
    golden.check("screen-hostile.txt", on_terminal(HOSTILE))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437"])
def test_it_looks_as_it_should_where_an_encoding_has_less(encoding: str) -> None:
    text = on_terminal(REPORTS["explained"], encoding=encoding)
    golden.check(f"screen-explained-{encoding}.txt", text)


def test_a_normal_screen_has_about_24_lines() -> None:
    assert len(on_terminal(REPORTS["compare"]).splitlines()) <= 24


@pytest.mark.parametrize("name", [*REPORTS, "hostile"])
@pytest.mark.parametrize("width", [20, 40, 60, 80, 81, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_is_wider_than_the_console(name: str, width: int, encoding: str) -> None:
    report = {**REPORTS, "hostile": HOSTILE}[name]
    text = on_terminal(report, width, encoding=encoding)
    assert max(map(cell_len, text.split("\n"))) <= width


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_number_is_cut(width: int) -> None:
    text = " ".join(on_terminal(REPORTS["gated"], width).split())
    for said in (
        "0.0123 ± 0.0012 nats a token", "8.51 → 8.59, +1.0 % (-0.2 to +2.2)",
        "96.65 % (96.00 to 97.20)", "7 lost, 13 gained: no direction (p 0.18)",
        "median 0.00617", "p90 0.0247", "p99 0.111", "max 0.494",
    ):  # fmt: skip
        assert said in text


def test_a_saved_report_looks_the_same() -> None:
    for report in REPORTS.values():
        saved = Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
        assert on_terminal(saved) == on_terminal(report)


def test_a_report_of_an_earlier_version_is_shown_without_pictures_and_time() -> None:
    data = compare_report().to_dict()
    for key in ("distribution", "along", "seconds"):
        del data[key]
    text = on_terminal(Report.from_dict(data))
    assert text.startswith("≠ candidate differs from reference   3,584 tokens · 56 windows\n")
    assert "median 0.00617 · p90" in text
    assert not set(text) & set("▁▂▃▄▅▆▇█")


# The verdict


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "≠ candidate differs from reference "),
        ({"noise_floor": FLOOR}, "≠ candidate differs from reference "),
        ({"noise_floor": {**FLOOR, "kl": 0.02}}, "≈ candidate differs no more than noise from ref"),
        ({"metrics": metrics(kl=mean(None))}, "? candidate differs by an unknown amount from ref"),
        ({"metrics": metrics(kl=mean(math.inf))}, "≠ candidate differs from reference "),
        ({"metrics": metrics(kl=mean(0.0))}, "= candidate is the same as reference "),
        (
            {"metrics": metrics(kl=mean(0.0)), "lower_bounds": ["kl"]},
            "= candidate is the same as reference, as far as its list of top tokens goes",
        ),
        ({"gates": [gate("kl<=1", 0.1, 1.0, verdict="pass")], "verdict": "pass"},
         "✓ PASS  candidate differs from reference, within the limits "),
        ({"gates": [gate("kl<=0.01", 0.1, 0.01)], "verdict": "fail"},
         "✗ FAIL  candidate differs from reference "),
    ],
)  # fmt: skip
def test_the_first_line_says_what_was_found(changes: Mapping[str, Any], says: str) -> None:
    assert first_line(compare_report(**changes)).startswith(says)


@pytest.mark.parametrize("name", ["compare", "identical", "infinite", "perplexity"])
def test_without_gates_nobody_passes_or_fails(name: str) -> None:
    assert not re.search(r"PASS|FAIL|✓|✗|gate", on_terminal(REPORTS[name]))


def test_the_verdict_comes_first_and_last() -> None:
    lines = on_terminal(gated_report()).splitlines()
    assert lines[0] == "✗ FAIL  candidate differs from reference"
    assert lines[-1] == "✗ FAIL  candidate differs from reference: 2 of 3 gates failed"


def test_a_shard_says_that_it_is_one() -> None:
    assert "shard 1/2" in first_line(compare_report(shard="1/2"))


@pytest.mark.parametrize(
    ("reference", "candidate", "says"),
    [
        ({"source": "org/a"}, {"source": "org/b"}, "b differs from a "),
        ({"source": "x/model/"}, {"source": "y/model"}, "y/model differs from x/model "),
        ({"source": r"C:\x\model"}, {"source": r"C:\y\model"}, "y/model differs from x/model "),
        (
            {"source": "m", "dtype": "float32"},
            {"source": "m", "dtype": "bfloat16"},
            "m: bfloat16 differs from float32 ",
        ),
        (
            {"source": "m", "adapter": None},
            {"source": "m", "adapter": "runs/lora"},
            "m: lora differs from none ",
        ),
        ({"source": "m"}, {"source": "m"}, "m: candidate differs from reference "),
        (
            {"source": "http://a/v1"},
            {"source": "http://b/v1"},
            "http://b/v1 differs from http://a/v1 ",
        ),
    ],
)
def test_models_are_named_by_as_much_as_tells_them_apart(
    reference: Mapping[str, Any], candidate: Mapping[str, Any], says: str
) -> None:
    models = {"reference": reference, "candidate": candidate}
    assert first_line(compare_report(models=models)).startswith(f"≠ {says}")


# The numbers


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "kl                0.0123 ± 0.0012 nats a token"),
        ({"kl": mean(0.272, ci_low=0.26, ci_high=0.284)}, "kl                0.272 ± 0.012 nats"),
        ({"kl": mean(2e-6)}, "kl                2.00e-06 (1.80e-06 to 2.20e-06) nats"),
        ({"kl": mean(0.01, ci_low=0.0, ci_high=0.04)}, "0.010 (0.000 to 0.040) nats a token"),
        ({"kl": mean(None)}, "kl                not known"),
        ({"top1_agreement": share(0.999996, ci_low=0.9, ci_high=1.0)}, "99.9996 % (90.0 to 100.0)"),
        ({"perplexity_ratio": value(37.2, ci_low=35.0, ci_high=40.0)}, "37.2 × (35.0 to 40.0)"),
        ({"perplexity_ratio": value(37.2)}, "8.51 → 8.59, 37.2 ×"),
        (
            {"perplexity_reference": value(8.38835), "perplexity_candidate": value(8.39236)},
            "8.388 → 8.392, +1.0 %",
        ),
        ({"flips": flips(p=0.004, net=-0.02, net_low=-0.03)}, "13 gained: worse (p 0.004)"),
        ({"flips": flips(p=0.004)}, "7 lost, 13 gained: better (p 0.004)"),
        ({"flips": flips(p=0.0)}, "better (p below 1e-16)"),
        ({"flips": flips(p=None, net_low=None, net_high=None)}, "7 lost, 13 gained\n"),
    ],
)
def test_a_number_has_the_digits_that_it_deserves(changes: Mapping[str, Any], line: str) -> None:
    assert line in on_terminal(compare_report(metrics=metrics(**changes)))


def test_what_is_not_known_of_the_text_is_left_out() -> None:
    unknown = metrics(perplexity_ratio=value(None), flips=dict.fromkeys(flips()))
    text = on_terminal(compare_report(metrics=unknown))
    assert "perplexity" not in text
    assert "flips" not in text


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (gate("kl.mean<=0.000457", 0.0123456, 0.000457), "limit 0.000457, 27 × over"),
        (gate("kl<=0.0123455", 0.0123456, 0.0123455), "limit 0.0123455, 0.00081 % over"),
        (gate("kl<=1", 0.0123456, 1.0, verdict="pass"), "token · limit 1\n"),
        (gate("top1_agreement>=0.98", 0.9665, 0.98), "limit 98 %, 1.38 % under"),
        (gate("kl<=2*baseline", 0.01, math.nan), "limit nan\n"),
    ],
)
def test_a_number_says_its_limit_and_how_far_it_is_over(one: Any, says: str) -> None:
    assert says in on_terminal(compare_report(gates=[one], verdict=one.verdict))


def test_a_limit_on_another_field_is_not_one_on_the_number() -> None:
    one = gate("kl.p99<=0.5", 0.9, 0.5)
    assert "token · limit" not in on_terminal(compare_report(gates=[one], verdict="fail"))


@pytest.mark.parametrize(
    ("floor", "says"), [(0.0001, "123 × the noise floor"), (0.02, "0.617 × the"), (0.0, "floor 0")]
)
def test_the_noise_floor_stands_beside_the_kl(floor: float, says: str) -> None:
    text = on_terminal(compare_report(noise_floor={**FLOOR, "kl": floor}))
    assert re.search(rf"^  kl .*{says}", text, re.MULTILINE)


# Warnings


def test_a_warning_stands_beneath_the_number_that_it_qualifies() -> None:
    warnings = [
        Notice(code="few_clusters", message="few pieces"),
        Notice(code="concentrated", message="3 tokens carry most"),
        Notice(code="unlisted_targets", message="7 tokens are not listed"),
    ]
    lines = on_terminal(compare_report(warnings=warnings)).splitlines()
    place = {line.strip(): number for number, line in enumerate(lines)}
    numbers = {line.split()[0]: number for number, line in enumerate(lines) if line.split()}
    assert place["! 3 tokens carry most"] == numbers["kl"] + 1
    assert place["! 7 tokens are not listed"] == numbers["perplexity_ratio"] + 1
    assert place["! few pieces"] > numbers["flips"]


def test_every_warning_is_shown_once() -> None:
    codes = ["a", "infinite", "unknown_tokens", "noisy_model", "mask_every"]
    warnings = [Notice(code=code, message=f"about {code}.") for code in codes]
    for report in (compare_report(warnings=warnings), perplexity_report(warnings=warnings)):
        for details in (False, True):
            text = on_terminal(report, details=details)
            assert [text.count(f"about {code}.") for code in codes] == [1] * len(codes)


def test_a_slice_that_cannot_be_shown_is_said() -> None:
    assert "! --slice position shows nothing" in on_terminal(compare_report(), slices=("position",))


# The shape


def test_the_histogram_ends_where_the_tokens_do() -> None:
    counts = [0] * 100
    counts[50], counts[59] = 10, 1
    text = on_terminal(compare_report(distribution=replace(DISTRIBUTION, counts=counts)))
    assert "0.001 █        ▁ 0.01 (log)\n" in text


def test_tokens_outside_of_the_histogram_are_counted() -> None:
    outside = replace(DISTRIBUTION, zero=1, below=2, above=3, infinite=4)
    text = on_terminal(compare_report(distribution=outside), 100)
    assert "1 token at 0 · 2 tokens below 1e-08 · 3 tokens above 100 · 4 tokens infinite" in text


def test_of_identical_models_there_is_no_histogram_and_no_line() -> None:
    text = on_terminal(identical_report())
    assert "3,584 tokens at 0\n" in text
    assert not set(text) & set("▁▂▃▄▅▆▇█")


def test_the_line_along_the_text_has_its_ends() -> None:
    along = replace(ALONG, starts=[0, 1, 2, 3], means=[0.1, 0.2, None, 0.8])
    assert "along the text    ▁▂ █  0.100 to 0.800\n" in on_terminal(compare_report(along=along))


# Tokens


def test_three_tokens_are_shown_unless_more_are_asked_for() -> None:
    report = compare_report(outliers=[outlier(kl=1 / n) for n in range(1, 9)])
    assert on_terminal(report).count("  KL ") == 4  # one begins the line of quantiles
    assert on_terminal(report, outliers=5).count("  KL ") == 6
    assert on_terminal(report, outliers=0).count("  KL ") == 1


def test_a_token_has_what_both_models_expected() -> None:
    text = on_terminal(compare_report())
    assert "the boat that waits[·is] very small" in text
    assert "reference ·is 73 %  →  candidate ·waits 100 %" in text


def test_a_wide_terminal_shows_more_of_what_they_expected() -> None:
    text = on_terminal(compare_report(), 120)
    assert "reference ·is 73 %  ·waits 23 %  →  candidate ·waits 100 %  ·is 0.003 %" in text


@pytest.mark.parametrize(
    ("probability", "shown"),
    [(1.0, "100 %"), (0.99996, "99.9 %"), (0.857, "86 %"), (0.0951, "10 %"), (0.00004, "0.004 %")],
)
def test_a_choice_that_is_not_sure_never_reads_100(probability: float, shown: str) -> None:
    sure = outlier(top_reference=[("x", probability)], top_candidate=[])
    assert f"reference x {shown}\n" in on_terminal(compare_report(outliers=[sure]))


def test_all_tokens_can_be_listed() -> None:
    assert "pos token" in on_terminal(compare_report(), tokens="all")
    saved = Report.from_dict(json.loads(json.dumps(compare_report().to_dict())))
    with pytest.raises(KlcliError, match="holds no single tokens"):
        on_terminal(saved, tokens="all")


# Colour and text


def test_a_pipe_gets_no_escape_and_a_terminal_gets_colours() -> None:
    assert "\x1b" not in on_terminal(gated_report())
    assert on_terminal(gated_report(), color=True).startswith("\x1b[1;31m✗ FAIL")


def test_nothing_is_told_by_colour_alone() -> None:
    coloured = on_terminal(gated_report(), color=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == on_terminal(gated_report())


@pytest.mark.parametrize("color", [True, False])
def test_hostile_text_reaches_no_terminal(color: bool) -> None:
    text = on_terminal(HOSTILE, color=color)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text) if color else text
    assert all(line.isprintable() for line in plain.split("\n"))
    assert "\x1b[31mred" not in text
    assert r"\x1b[31mred" in plain


@pytest.mark.parametrize("details", [True, False])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1"])
def test_every_encoding_can_say_it(details: bool, encoding: str) -> None:
    for name in ("explained", "infinite", "perplexity"):
        text = on_terminal(REPORTS[name], details=details, encoding=encoding)
        assert re.search("nats (a|per) token", text)
    assert r"\x1b[31mred" in on_terminal(HOSTILE, details=details, encoding=encoding)


def test_ascii_has_words_and_pictures_of_its_own() -> None:
    text = on_terminal(gated_report(), encoding="ascii")
    assert text.isascii()
    assert text.startswith("x FAIL  candidate differs")
    assert "0.0123 +- 0.0012 nats" in text
    assert "8.51 -> 8.59" in text
    assert "that waits[_is] very" in text
    assert re.search(r"4e-05 [.:=+*#%@-]+ 1 \(log\)", text)


def test_tables_keep_their_columns_in_ascii() -> None:
    shown = {
        encoding: on_terminal(compare_report(), details=True, encoding=encoding).split("\n")[8:34]
        for encoding in ("utf-8", "ascii")
    }
    assert [len(line) for line in shown["ascii"]] == [len(line) for line in shown["utf-8"]]


def test_a_distribution_that_nobody_can_draw_is_left_out() -> None:
    empty = Distribution(
        metric="kl", edges=[1, 2], counts=[0], zero=0, below=0, above=0, infinite=0
    )
    text = on_terminal(compare_report(distribution=empty, along=None, counts={**COUNTS}))
    assert not set(text) & set("▁▂▃▄▅▆▇█")
