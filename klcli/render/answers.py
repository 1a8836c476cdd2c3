"""What is said of answers: how many are the same, and how far the others are."""

from klcli.judge.report import Answers, Report
from klcli.render.numbers import count, figure
from klcli.render.summary import Table


def said_of_answers(report: Report) -> list[str]:
    """How many answers agree to their end, and where the others part; nothing without answers."""
    found = report.answers
    if found is None:
        return []
    who = "the candidate" if report.command == "compare" else "the model"
    would = "would say the same" if found.greedy else "has the same first choices"
    agreeing = round((found.agreeing["value"] or 0.0) * found.count)
    said = [f"{who} {would} in {agreeing:,} of {count(found.count, 'answer')}"]
    if found.median_first is not None:
        said.append(f"half of them differ by token {found.median_first + 1:,}")
    elif found.mean_first is not None:
        said.append(f"the others differ at token {found.mean_first + 1:,.0f} on average")
    return said


def sentence_about_answers(report: Report) -> str:
    """The same as one sentence; empty without answers."""
    said = "; ".join(said_of_answers(report))
    return f"{said[0].upper()}{said[1:]}." if said else ""


def agreement_said(found: Answers) -> str:
    """The ends of the survival curve, in words."""
    first, last = found.survival[0], found.survival[-1]
    ends = [f"{_percent(first.share)} agree for {count(first.tokens, 'token')}"]
    if last.tokens > first.tokens:
        ends.append(f"{_percent(last.share)} for {last.tokens:,}")
    return ", ".join(ends)


def survival_table(report: Report) -> Table | None:
    """How many answers agree for how many tokens; None without answers."""
    if report.answers is None:
        return None
    rows = [
        [
            f"{one.tokens:,}",
            _percent(one.share),
            "" if one.ci_low is None or one.ci_high is None
            else f"{_percent(one.ci_low)} to {_percent(one.ci_high)}",
        ]
        for one in report.answers.survival
    ]  # fmt: skip
    return Table(head=["tokens", "answers that agree so far", "95 %"], rows=rows)


def _percent(share: float) -> str:
    return f"{figure(100 * share)} %"
