"""What metrics mean, and the words around them on the screen: what ``klcli explain`` prints."""

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from klcli.errors import UsageError, choose_from, closest
from klcli.judge.grammar import field_named, metric_named
from klcli.judge.metrics import METRICS, Definition
from klcli.render.layout import alphabet_of, print_hanging

TERMS: Mapping[str, str] = {
    "noise floor": "By how much the reference differs from itself when it computes in another "
    "order (--noise-floor). A KL below it shows nothing.",
    "lower bound": "A side that lists only its top tokens (a top-k recording, or a server's "
    "top_logprobs) tells the least that a divergence can be, shown as ≥. The true one may be "
    "higher, so it never passes a gate with an upper limit.",
    "p": "Of flips: the probability of a net as large as this if both directions were equally "
    "likely. Above 0.05 there is no direction to speak of.",
    "z": "The outlier score: by how many robust standard deviations ln KL lies above that of "
    "tokens of which the reference is as sure. Above 3.5 a token stands out.",
    "interval": "Where the number would lie for other text like this, with 95 % confidence. "
    "Neighbouring tokens are alike, so it is made from groups of them.",
    "protocol": "How the text becomes windows, and which tokens are scored (--protocol). "
    "Perplexities of two protocols cannot be compared.",
}
"""Words on the screen that are not metrics."""

_FIELDS = {name: one.fields for name, one in METRICS.items()}
_LIMITS = {"nats per token": "0.01", "share": "2%", "bits per byte": "1.1", "tokens": "50",
           "ratio": "102%", "perplexity": "24"}  # fmt: skip
_QUANTILE_LIMITS = {"nats per token": "0.1", "share": "10%", "tokens": "500"}
"""A limit for an example of a gate, by unit."""


def explain_all(console: Console) -> None:
    """Print every metric in a line, and the other words."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in ("metric", "what it is", "unit", "better"):
        table.add_column(head, overflow="fold")
    spell = alphabet_of(console).spell
    for name, one in METRICS.items():
        table.add_row(*(Text(spell(cell)) for cell in (name, one.formula, one.unit, one.better)))
    console.print(table)
    console.print()
    others = f"Other words: {', '.join(TERMS)}. klcli explain WORD tells more."
    print_hanging(Text(), Text(others), console)


def explain(word: str, console: Console) -> None:
    """Print all about one metric, as gates name it, or about another word.

    Raises:
        UsageError: there is none of that name.
    """
    if word.lower() in TERMS:
        _print_heading(word.lower(), "", TERMS[word.lower()], console)
        return
    one = _definition(word)
    _print_heading(one.name, one.label, one.says, console)
    console.print()
    for name, said in _facts(one).items():
        print_hanging(Text(f"{name:<9}", "dim"), Text(said), console)


def _print_heading(name: str, label: str, says: str, console: Console) -> None:
    print_hanging(Text(f"{name}  ", "bold"), Text(label), console)
    print_hanging(Text(), Text(says), console)


def _definition(word: str) -> Definition:
    """The metric that a word or the number of a gate, as ``kl.p99``, is about."""
    what, (metric, _, field) = f"klcli explain {word}", word.strip().partition(".")
    try:
        one = METRICS[metric_named(what, metric, _FIELDS)]
    except UsageError as error:
        if closest(word, TERMS) is None:
            raise
        raise UsageError(f"{what}: unknown word{choose_from(word, TERMS)}") from error
    if field:
        field_named(what, one.name, field, one.fields)
    return one


def _facts(one: Definition) -> dict[str, str]:
    """What there is to tell about a metric, by what it is."""
    facts = {
        "formula": one.formula,
        "unit": one.unit,
        "better": one.better,
        "gates": "  ".join(examples(one)),
        "fields": ", ".join(one.fields),
        "source": one.source,
    }
    return {name: said for name, said in facts.items() if said}


def examples(one: Definition) -> Iterator[str]:
    """Gates on the metric: on its main number, a quantile, and against a baseline."""
    if one.better == "higher":
        is_signed = one.bounds[0] < 0
        yield f"{one.gate_name}>={'-1%' if is_signed else '98%'}"
        return
    yield f"{one.gate_name}<={_LIMITS[one.unit]}"
    if "p99" in one.fields:
        yield f"{one.name}.p99<={_QUANTILE_LIMITS[one.unit]}"
    yield f"{one.gate_name}<=1.1*baseline"
