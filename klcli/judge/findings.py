"""Why two models differ: findings, each with its evidence. Without evidence nothing is said."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from klcli.align.alignment import Alignment
from klcli.judge.profile import profile
from klcli.judge.report import Finding, Slice
from klcli.judge.settings import Difference, differing, unseen_in, visible_in
from klcli.measure.scores import TokenScores
from klcli.text.windows import WindowTable

if TYPE_CHECKING:
    from klcli.measure.shift import Shift  # which loads torch

FLOOR = 1e-5
"""Mean KL in nats below which there is nothing to explain, where no noise floor was measured."""
ABOVE = 2.0
"""How many times the measured noise floor the KL must be."""
MOST_SETTINGS = 6
SHARE = 0.5
"""Share of the KL that one kind of token must carry."""
HEAVIER = 4.0
"""How many times the mean KL of all other tokens its own must be."""
ENOUGH = 20
"""Tokens of a kind from which on it is looked at."""


def find_causes(
    scores: TokenScores,
    alignment: Alignment,
    models: Mapping[str, Mapping[str, Any]],
    slices: Sequence[Slice],
    noise_floor: Mapping[str, Any] | None,
) -> list[Finding]:
    """Every finding about a comparison; none where the KL is no more than noise.

    What the text was too short to show is said in any case.
    """
    if not scores.paired:
        return []
    table = alignment.table
    longest = max(len(window.inputs) for window in table.windows)
    settings = differing(models)
    kl = _mean_kl(scores)
    floor = FLOOR if noise_floor is None else max(FLOOR, ABOVE * noise_floor["kl"])
    found = [*_of_engine(models)]
    if kl is not None and kl > floor:
        found += _of_settings(visible_in(settings, longest))
        found += _of_position(scores, table)
        found += _of_kinds(slices, kl)
        found += _of_documents(scores, table)
    return [*found, *_not_seen(settings, longest)]


def _of_engine(models: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """What llama.cpp adds by itself, or that it adds something."""
    roles = ("reference", "candidate")
    sides = {role: models[role].get("engine", "transformers") for role in roles}
    if len({*sides.values()}) == 1:
        return
    one, other = (models[role]["source"] for role in ("reference", "candidate"))
    if one == other:
        message = (
            "both sides run the same file: this is what llama.cpp itself adds, which rounds "
            "activations to 8 bits and keeps its cache in 16, and nothing of it is the weights'"
        )
    else:
        file = one if sides["reference"] == "llama.cpp" else other
        message = (
            f"llama.cpp runs {file}: the KL is of its weights and of what llama.cpp adds; to tell "
            "them apart compare the file with itself, --candidate-engine llama.cpp"
        )
    yield Finding(cause="engine", message=message, evidence={**sides, "same_file": one == other})


def about_shift(shift: "Shift") -> Finding:
    """That ids are moved by one."""
    way = "plus" if shift.by > 0 else "minus"
    return Finding(
        cause="shift",
        message=f"the candidate's ids are those of the reference {way} 1: with that undone the KL "
        f"falls from {shift.unmoved:.3g} to {shift.kl:.3g} nats. A token was added or lost at the "
        "start of its vocabulary",
        evidence={"by": shift.by, "kl": shift.kl, "kl_unmoved": shift.unmoved},
    )


def _mean_kl(scores: TokenScores) -> float | None:
    total, tokens = 0.0, 0
    for _, part in scores.blocks():
        known = part["kl"][~part["excluded"]]
        total += float(known.sum())
        tokens += len(known)
    return total / tokens if tokens and not np.isnan(total) else None


def _of_settings(found: Sequence[Difference]) -> Iterator[Finding]:
    if not found:
        return
    shown = ", ".join(map(str, found[:MOST_SETTINGS]))
    more = f" and {len(found) - MOST_SETTINGS} more" if len(found) > MOST_SETTINGS else ""
    yield Finding(
        cause="settings",
        message=f"the configs differ: {shown}{more} (reference → candidate)",
        evidence={one.name: [one.reference, one.candidate] for one in found},
    )


def _of_position(scores: TokenScores, table: WindowTable) -> Iterator[Finding]:
    found = profile(scores, table)
    if found is None:
        return
    bins = {"rows": found.to_dict()}
    if found.first == 1:
        course = "and KL rises with the row" if found.is_rising else "and all rows behind it differ"
        yield Finding(
            cause="position",
            message=f"row 0 of every window, which reads one token, is equal, {course}: what "
            "differs acts between tokens. Check rotary settings (theta, scaling) and attention",
            evidence={"first_row": 1, **bins},
        )
    elif found.first:
        yield Finding(
            cause="position",
            message=f"rows 0 to {found.first - 1} of every window are equal, and those from row "
            f"{found.first} on differ: check the sliding window, and what begins at that length",
            evidence={"first_row": found.first, **bins},
        )
    elif found.is_flat:
        means = [one["kl"] for one in found.to_dict()]
        yield Finding(
            cause="position",
            message=f"KL is flat ({min(means):.3g} to {max(means):.3g} nats), from row 0 on: "
            "what differs does not depend on the context. Check the output head and the embeddings",
            evidence={"first_row": 0, **bins},
        )


def _of_kinds(slices: Sequence[Slice], kl: float) -> Iterator[Finding]:
    kinds = [one for one in slices if one.by == "kind"]
    tokens = sum(one.tokens for one in kinds)
    for one in kinds:
        mean, share = one.means["kl"], one.means["share"]
        if mean is not None and share is not None and _is_heavy(share, one.tokens, tokens):
            yield _share(f"{one.slice} tokens", share, one.tokens, tokens, mean / kl)


def _of_documents(scores: TokenScores, table: WindowTable) -> Iterator[Finding]:
    documents = len(table.documents)
    if documents < 3:
        return
    sums, counts = np.zeros(documents), np.zeros(documents, dtype=np.int64)
    for _, part in scores.blocks():
        known = ~part["excluded"]
        np.add.at(sums, part["document"][known], part["kl"][known])
        np.add.at(counts, part["document"][known], 1)
    place = int(sums.argmax())
    total, tokens = float(sums.sum()), int(counts.sum())
    count, share = int(counts[place]), float(sums[place]) / total
    if _is_heavy(share, count, tokens):
        name = f"document {table.documents[place].name}"
        yield _share(name, share, count, tokens, share / (count / tokens))


def _is_heavy(share: float, count: int, tokens: int) -> bool:
    """Whether so many of the tokens carry most of the KL, each far more than the others do."""
    others = tokens - count
    if count < ENOUGH or not others or share < SHARE:
        return False
    return share * others > HEAVIER * (1 - share) * count


def _share(name: str, share: float, count: int, tokens: int, times: float) -> Finding:
    return Finding(
        cause="share",
        message=f"{name}: {count / tokens:.1%} of the tokens carry {share:.0%} of the KL, "
        f"{times:.3g} times the mean a token",
        evidence={"of": name, "share": share, "tokens": count, "tokens_in_all": tokens},
    )


def _not_seen(settings: Sequence[Difference], longest: int) -> Iterator[Finding]:
    for one, limit in unseen_in(settings, longest):
        yield Finding(
            cause="not_seen",
            message=f"the configs differ in {one} (reference → candidate), and no window is longer "
            f"than {limit:,} tokens: what it changes was not seen. Windows have up to {longest:,}; "
            f"give a --context above {limit:,}",
            evidence={"setting": one.name, "limit": limit, "longest_window": longest},
        )
