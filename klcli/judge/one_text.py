"""Gates on one of several texts, as in ``wiki.txt:kl.mean<=0.01``: which text each is about."""

from collections.abc import Iterable, Sequence
from pathlib import PurePath

from klcli.errors import UsageError, choose_from
from klcli.judge.clusters import Bools
from klcli.judge.gate import Gate
from klcli.judge.report import Report
from klcli.judge.several import group_names, tokens_of_corpus, tokens_of_group
from klcli.judge.text_results import CorpusResult, Group
from klcli.text.examples import Dataset
from klcli.text.windows import WindowTable

MOST_GROUPS = 200
"""Groups of documents that a report has rows for."""


def check_texts(gates: Iterable[Gate], corpora: Sequence[str], groups: Sequence[str]) -> None:
    """Find out whether there is a text for every gate.

    Raises:
        UsageError: a gate is on one that is not there, or that several have the name of.
    """
    for gate in gates:
        if gate.of is not None:
            corpus_or_group(gate, corpora, groups)


def check_datasets(gates: Iterable[Gate], datasets: Sequence[Dataset]) -> None:
    """The same for what was read of the texts; where nothing was, files bring them.

    Raises:
        UsageError: as ``check_texts``, or there are more groups than anybody reads.
    """
    examples = (example for one in datasets for example in one.examples)
    named = dict.fromkeys(example.group for example in examples)
    groups = [group for group in named if group is not None]
    if len(groups) > MOST_GROUPS:
        raise UsageError(
            f"--group-by finds {len(groups):,} groups, and each is a row of its own: name a field "
            f"with at most {MOST_GROUPS} values"
        )
    if datasets:
        check_texts(gates, [one.name for one in datasets], groups)


def corpus_or_group(gate: Gate, corpora: Sequence[str], groups: Sequence[str]) -> int | str:
    """The number of the corpus that a gate is on, or the name of the group.

    A corpus has the name that it was given, or the last part of that where no other has it too.

    Raises:
        UsageError: there is none, or more than one.
    """
    assert gate.of is not None
    if gate.of in corpora:
        return list(corpora).index(gate.of)
    found = [n for n, name in enumerate(corpora) if PurePath(name).name == gate.of]
    if len(found) == 1 and gate.of not in groups:
        return found[0]
    if not found and gate.of in groups:
        return gate.of
    known = [*corpora, *groups]
    if found:
        meant = [corpora[n] for n in found] + [name for name in groups if name == gate.of]
        raise UsageError(f"--gate {gate.text!r}: which {gate.of}? Write one of {', '.join(meant)}")
    if not known:
        raise UsageError(f"--gate {gate.text!r}: no text has a name here: leave out {gate.of!r}:")
    raise UsageError(f"--gate {gate.text!r}: unknown text {gate.of!r}{choose_from(gate.of, known)}")


def check_table(gates: Iterable[Gate], table: WindowTable) -> None:
    """The same for what is scored.

    Raises:
        UsageError: as ``check_texts``.
    """
    check_texts(gates, [one.name for one in table.corpora], group_names(table))


def tokens_of(table: WindowTable, gate: Gate) -> Bools:
    """Which tokens a gate on one text is about.

    Raises:
        UsageError: there is no such text.
    """
    found = corpus_or_group(gate, [one.name for one in table.corpora], group_names(table))
    if isinstance(found, int):
        return tokens_of_corpus(table, found)
    return tokens_of_group(table, found)


def text_of(report: Report, gate: Gate) -> CorpusResult | Group | Report:
    """What of a report a gate is about: one of its texts, or all.

    Raises:
        UsageError: it has no such text.
    """
    if gate.of is None:
        return report
    groups = [] if report.groups is None else report.groups.groups
    names = [one.name for one in groups]
    found = corpus_or_group(gate, [one.name for one in report.corpora], names)
    return report.corpora[found] if isinstance(found, int) else groups[names.index(found)]
