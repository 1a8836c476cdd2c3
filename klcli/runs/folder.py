"""A run, kept in a folder: what was scored, and the columns of every token.

``manifest.json`` says what was asked for and what is there, ``windows.safetensors`` has the tokens
and windows, ``tokenizer.json`` the vocabulary, and ``part-00000.safetensors`` and so on the columns
of some batches each. A killed run goes on behind its last part. ``report.json``, once it is
complete, is the report that was printed; klcli 0.1.0 kept no checksum of it.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.numpy

from klcli.errors import MismatchError, Notice, SourceError, UsageError, reading
from klcli.measure.gathered import Evaluation, ScoredBatch, gather
from klcli.measure.shard import WHOLE, Shard, parse_shard
from klcli.runs.format import RUN, VERSION, VERSION_WITH_PARTS, part_name
from klcli.sources.conditions import Conditions
from klcli.sources.slow_tokenizer import read_backend
from klcli.storage import manifest as manifests
from klcli.storage.files import check_file, put, read_checked
from klcli.storage.manifest import TOKENIZER, WINDOWS
from klcli.storage.tables import (
    describe,
    read_vocabulary,
    read_windows,
    special_ids,
    windows_digest,
    windows_to_bytes,
)
from klcli.text.vocabulary import NamedTokens, NumberedTokens, TokenNames, Vocabulary
from klcli.text.windows import WindowTable

REPORT = "report.json"
PART_ROWS = 8192
"""Scored tokens after which a part is written, at the latest."""
PART_SECONDS = 20.0


ALTERNATIVES = "kept "
"""What stands before the names of the tensors that are about alternatives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a report of a run needs beside its windows and columns.

    ``outliers`` is how many the report shows; ``vocabulary_size`` as in ``Alignment``;
    ``slice_regex`` what its tokens are sliced by.
    """

    paired: bool
    outliers: int
    vocabulary_size: int
    conditions: Conditions
    notices: tuple[Notice, ...]
    slice_regex: tuple[str, ...] = ()

    @property
    def per_bin(self) -> int:
        """How many tokens of each bin of confidence have their alternatives kept.

        Those with the largest KL are shown, and as many that stand out among their like.
        """
        return 2 * self.outliers

    def to_manifest(self) -> dict[str, Any]:
        """The facts as a manifest has them."""
        return {
            "paired": self.paired,
            "keep": self.per_bin,
            "outliers": self.outliers,
            "vocabulary_size": self.vocabulary_size,
            "models": self.conditions.models,
            "environment": self.conditions.environment,
            "notices": [asdict(notice) for notice in self.notices],
            **({"slice_regex": list(self.slice_regex)} if self.slice_regex else {}),
        }

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> "RunFacts":
        """The facts of a manifest; klcli 0.1.0 did not name the outliers in it."""
        return cls(
            paired=manifest["paired"],
            outliers=manifest.get("outliers", manifest["keep"] // 2),
            vocabulary_size=manifest["vocabulary_size"],
            conditions=Conditions(models=manifest["models"], environment=manifest["environment"]),
            notices=tuple(Notice(**notice) for notice in manifest["notices"]),
            slice_regex=tuple(manifest.get("slice_regex", ())),
        )


@dataclass(slots=True)
class RunFolder:
    """A run that is being written. It is a ``Store`` of ``evaluate``."""

    folder: Path
    manifest: dict[str, Any]
    _pending: list[ScoredBatch] = field(default_factory=list)
    _written: float = field(default_factory=time.monotonic)

    def finished(self) -> Iterator[ScoredBatch]:
        """Every batch of the parts that are there."""
        return _read_parts(self.folder, self.manifest)

    def add(self, batch: ScoredBatch) -> None:
        """Keep one more batch, in the next part."""
        self._pending.append(batch)
        rows = sum(len(one.index) for one in self._pending)
        if rows >= PART_ROWS or time.monotonic() - self._written > PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        self._written = time.monotonic()
        if not self._pending:
            return
        parts = self.manifest["parts"]
        name = part_name(len(parts))
        joined = _join(self._pending)
        entry = put(self.folder / name, safetensors.numpy.save(_tensors(joined)))
        entry |= {"name": name, "padded_mass": joined.padded_mass, "kinds": joined.kinds}
        self._save(parts=[*parts, entry])
        self._pending = []

    def complete(self, report: Mapping[str, Any]) -> None:
        """Write what is pending and the report, and call the run complete.

        What is killed before the end is incomplete: a report never stands beside the checksum of
        another.
        """
        self.flush()
        files = {name: entry for name, entry in self.manifest["files"].items() if name != REPORT}
        self._save(files=files, complete=False)
        content = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        entry = put(self.folder / REPORT, content.encode())
        self._save(files={**files, REPORT: entry}, complete=True)

    def fill(self, batches: Iterable[ScoredBatch], report: Mapping[str, Any]) -> None:
        """Keep a whole run that was scored elsewhere, complete with its report.

        What is left of an earlier attempt is written anew, for it need not have had the same parts.
        """
        if not self.manifest["complete"]:
            left = self.manifest["parts"]
            self._save(parts=[])
            for part in left:
                (self.folder / part["name"]).unlink(missing_ok=True)
            for batch in batches:
                self.add(batch)
        self.complete(report)

    def _save(self, **changed: Any) -> None:
        """Write the manifest, and only then go by it: whatever is interrupted can be repeated."""
        manifest = {**self.manifest, **changed}
        manifests.save(self.folder, manifest)
        self.manifest = manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRun:
    """A run that was read: its manifest, its tokens, and what was measured of them."""

    folder: Path
    manifest: Mapping[str, Any]
    facts: RunFacts
    table: WindowTable
    names: TokenNames

    @property
    def request(self) -> Mapping[str, Any]:
        """What makes it the same run."""
        return cast("Mapping[str, Any]", self.manifest["request"])

    @property
    def has_sealed_report(self) -> bool:
        """Whether its report was checked when it was opened."""
        return REPORT in self.manifest["files"]

    @property
    def shard(self) -> Shard:
        """Which part of the run it is."""
        return parse_shard(self.request["shard"] or str(WHOLE))

    def parts(self) -> Iterator[ScoredBatch]:
        """What was measured, part by part.

        Raises:
            SourceError: a part is missing, truncated or altered.
        """
        return _read_parts(self.folder, self.manifest)

    def evaluation(self) -> Evaluation:
        """The columns of every token that was scored, as the loop gave them."""
        return joined([self], self.facts.per_bin)


def joined(runs: Sequence[SavedRun], per_bin: int | None) -> Evaluation:
    """The columns of one run, or of the shards of one, each with some of its batches.

    Raises:
        SourceError: a part is missing, truncated or altered, or windows of a whole run are missing.
    """
    first = runs[0]
    parts = (part for run in runs for part in run.parts())
    with reading(f"the run {first.folder}", SourceError):
        found = gather(parts, first.table, paired=first.facts.paired, per_bin=per_bin)
    is_whole = len(runs) == first.shard.of
    if is_whole and (missing := first.table.tokens - found.table.tokens):
        raise SourceError(
            f"{first.folder} lacks {missing:,} of {first.table.tokens:,} tokens: make the run again"
        )
    return found


def check_shards(runs: Sequence[SavedRun]) -> None:
    """Hold the shards of one run against each other.

    Raises:
        UsageError: one is missing or there twice.
        MismatchError: they are of different runs.
    """
    if not runs:
        raise UsageError("name the folders of all shards")
    requests = [{**run.request, "shard": None} for run in runs]
    for run, request in zip(runs, requests, strict=True):
        if changed := [key for key in request if request[key] != requests[0].get(key)]:
            raise MismatchError(
                f"{run.folder} and {runs[0].folder} are of different runs ({', '.join(changed)} "
                "differ): merge the shards of one command"
            )
    shards, of = [run.shard for run in runs], runs[0].shard.of
    wanted = [Shard(number, of) for number in range(1, of + 1)]
    if missing := [shard for shard in wanted if shard not in shards]:
        raise UsageError(f"shard {missing[0]} is missing: name the folders of all {of}")
    if len(shards) > of:
        raise UsageError(
            f"{len(shards)} folders are named and the run has {of} shards: name each once"
        )


def facts_of(runs: Sequence[SavedRun]) -> RunFacts:
    """The facts of a run, or of the shards of one, whose commands are not that of the whole."""
    facts = runs[0].facts
    if len(runs) == 1:
        return facts
    known = facts.conditions
    environment = {k: v for k, v in known.environment.items() if k != "command_line"}
    return replace(facts, conditions=replace(known, environment=environment))


def join_runs(runs: Sequence[SavedRun], folder: Path, report: Mapping[str, Any]) -> None:
    """Keep the shards of a run as one run, complete with its report."""
    first = runs[0]
    request = {**first.request, "shard": None}
    with writing(folder, request, first.table, first.names, facts_of(runs)) as whole:
        whole.fill((part for run in runs for part in run.parts()), report)


@contextlib.contextmanager
def writing(
    folder: Path,
    request: Mapping[str, Any],
    table: WindowTable,
    names: TokenNames,
    facts: RunFacts,
) -> Iterator[RunFolder]:
    """Have a folder to write a run to, or to go on with one that was killed.

    ``request`` is what makes it the same run.

    Raises:
        OutputError: the folder holds something else or another run, or another process writes to
            it.
    """
    with RUN.writing(folder):
        run = _begin(folder, request, table, names, facts)
        try:
            yield run
        finally:
            run.flush()


def check_going_on(folder: Path, known: Mapping[str, Any]) -> None:
    """Hold a run that was begun in a folder, if one was, against what is known of the new one.

    Raises:
        SourceError: its manifest is damaged.
        OutputError: it is another run.
    """
    if RUN.is_at(folder):
        RUN.check_same(folder, RUN.read(folder)["request"], known)


def open_run(folder: Path) -> SavedRun:
    """Open a complete run.

    Raises:
        SourceError: it is incomplete, damaged, foreign or of another version.
    """
    manifest = RUN.read(folder)
    if not manifest["complete"]:
        raise SourceError(f"{folder} is incomplete: run the same command again, and it goes on")
    for name, entry in manifest["files"].items():
        if name not in (WINDOWS, TOKENIZER):  # checked where they are read
            check_file(folder / name, entry)
    with reading(f"the run {folder}", SourceError):
        return SavedRun(
            folder=folder,
            manifest=manifest,
            facts=RunFacts.from_manifest(manifest),
            table=read_windows(folder, manifest),
            names=_read_names(folder, manifest),
        )


def scored_tokens(folder: Path, manifest: Mapping[str, Any]) -> int:
    """How many tokens a run has scored, be it complete or not.

    Raises:
        SourceError: a part is missing, truncated or altered.
    """
    return sum(len(part.index) for part in _read_parts(folder, manifest))


def _begin(
    folder: Path,
    request: Mapping[str, Any],
    table: WindowTable,
    names: TokenNames,
    facts: RunFacts,
) -> RunFolder:
    request = {**request, "windows": windows_digest(table)}
    if RUN.is_at(folder):
        return _going_on(folder, RUN.read_to_go_on(folder, request), facts)
    files = dict[str, Any]()
    put(folder / WINDOWS, windows_to_bytes(table), files)
    if isinstance(names, Vocabulary):
        put(folder / TOKENIZER, names.to_json().encode(), files)
    run = RunFolder(
        folder,
        {
            "format": RUN.name,
            "format_version": VERSION_WITH_PARTS if table.has_parts else VERSION,
            "complete": False,
            "request": request,
            **facts.to_manifest(),
            **describe(table),
            "masking": table.masking,
            "names": _describe_names(names),
            "files": files,
            "parts": [],
        },
    )
    run._save()
    return run


def _going_on(folder: Path, manifest: dict[str, Any], facts: RunFacts) -> RunFolder:
    """A run that was begun; how its tokens are sliced is as it is asked for now."""
    run = RunFolder(folder, manifest)
    if RunFacts.from_manifest(manifest).slice_regex != facts.slice_regex:
        run._save(slice_regex=list(facts.slice_regex))
    return run


def _describe_names(names: TokenNames) -> dict[str, Any]:
    if isinstance(names, Vocabulary):
        return {"tokenizer": special_ids(names)}
    known = names.token_bytes if isinstance(names, NamedTokens) else {}
    return {"size": names.size, "pieces": {str(i): token.hex() for i, token in known.items()}}


def _read_names(folder: Path, manifest: Mapping[str, Any]) -> TokenNames:
    named = manifest["names"]
    if "tokenizer" in named:
        return read_vocabulary(folder, manifest["files"], named["tokenizer"], read_backend)
    if named["pieces"]:
        known = {int(i): bytes.fromhex(token) for i, token in named["pieces"].items()}
        return NamedTokens(named["size"], known)
    return NumberedTokens(named["size"])


def _join(batches: list[ScoredBatch]) -> ScoredBatch:
    sides = batches[0].padded_mass
    return ScoredBatch(
        batches=[number for batch in batches for number in batch.batches],
        index=np.concatenate([batch.index for batch in batches]),
        columns={
            name: np.concatenate([batch.columns[name] for batch in batches])
            for name in batches[0].columns
        },
        alternatives={
            name: np.concatenate([batch.alternatives[name] for batch in batches])
            for name in batches[0].alternatives
        },
        padded_mass={side: max(batch.padded_mass[side] for batch in batches) for side in sides},
        kinds=batches[0].kinds,
    )


def _tensors(batch: ScoredBatch) -> dict[str, np.ndarray[Any, Any]]:
    tensors = {"batches": np.array(batch.batches, dtype=np.int64), "index": batch.index}
    tensors |= dict(batch.columns)
    return tensors | {f"{ALTERNATIVES}{name}": v for name, v in batch.alternatives.items()}


def _read_parts(folder: Path, manifest: Mapping[str, Any]) -> Iterator[ScoredBatch]:
    for entry in manifest["parts"]:
        tensors = safetensors.numpy.load(read_checked(folder / entry["name"], entry))
        batches, index = tensors.pop("batches"), tensors.pop("index")
        alternatives = {
            name.removeprefix(ALTERNATIVES): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(ALTERNATIVES)
        }
        yield ScoredBatch(
            batches=cast("list[int]", batches.tolist()),
            index=index,
            columns=tensors,
            alternatives=alternatives,
            padded_mass=entry["padded_mass"],
            kinds=entry["kinds"],
        )
