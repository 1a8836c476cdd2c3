"""A run, kept in a folder: what was scored, and the columns of every token.

``manifest.json`` says what was asked for and what is there, ``windows.safetensors`` has the tokens
and windows, ``tokenizer.json`` the vocabulary, and ``part-00000.safetensors`` and so on the columns
of some batches each. A killed run goes on behind its last part. ``report.json``, once it is
complete, is the report that was printed.
"""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import filelock
import numpy as np
import safetensors.numpy
import safetensors.torch
from tokenizers import Tokenizer

from klcli.errors import MismatchError, OutputError, SourceError, UsageError
from klcli.measure.evaluate import Evaluation, Gathered, ScoredBatch
from klcli.sources.recorder import put
from klcli.sources.recording import (
    check_file,
    masking_of,
    read_windows,
    seal,
    window_tensors,
)
from klcli.text.vocabulary import NamedTokens, NumberedTokens, TokenNames, Vocabulary
from klcli.text.windows import WindowTable

FORMAT = "klcli.run"
FORMAT_VERSION = 1
MANIFEST, WINDOWS, TOKENIZER, REPORT, LOCK = (
    "manifest.json", "windows.safetensors", "tokenizer.json", "report.json", "lock"
)  # fmt: skip
PART_ROWS = 8192
"""Scored tokens after which a part is written, at the latest."""
PART_SECONDS = 20.0

WHOLE = (1, 1)
"""The shard that is the whole run."""

KEPT = "kept "
"""What stands before the names of the tensors that are about alternatives."""


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
        name = f"part-{len(parts):05}.safetensors"
        joined = _join(self._pending)
        entry = put(self.folder / name, safetensors.numpy.save(_tensors(joined)))
        entry |= {"name": name, "padded_mass": joined.padded_mass, "kinds": joined.kinds}
        self._save(parts=[*parts, entry])
        self._pending = []

    def complete(self, report: Mapping[str, Any]) -> None:
        """Write what is pending and the report, and call the run complete."""
        self.flush()
        content = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        put(self.folder / REPORT, content.encode())
        self._save(complete=True)

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
        sealed = {**manifest, "sha256": seal(manifest)}
        put(self.folder / MANIFEST, (json.dumps(sealed, indent=1) + "\n").encode())
        self.manifest = manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRun:
    """A run that was read: its manifest, its tokens, and what was measured of them."""

    folder: Path
    manifest: Mapping[str, Any]
    table: WindowTable
    names: TokenNames

    @property
    def paired(self) -> bool:
        """Whether two models were compared."""
        return bool(self.manifest["paired"])

    def evaluation(self) -> Evaluation:
        """The columns of every token, as the loop gave them."""
        return gather([self])


def parse_shard(text: str | None, run: str | None) -> tuple[int, int]:
    """Which share of the batches "3/16" is: (3, 16); all of them where none is given.

    Raises:
        UsageError: it is no such share, or there is no folder to keep it in.
    """
    if text is None:
        return WHOLE
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= of:
        raise UsageError(f"--shard {text!r}: a number and how many there are, as 3/16, is wanted")
    if run is None:
        raise UsageError("--shard is a part of a run that is joined later: give --run DIR too")
    return number, of


def check_shards(runs: "Sequence[SavedRun]") -> None:
    """Hold the shards of one run against each other.

    Raises:
        UsageError: one is missing or there twice.
        MismatchError: they are of different runs.
    """
    if not runs:
        raise UsageError("name the folders of all shards")
    requests = [{**run.manifest["request"], "shard": None} for run in runs]
    for run, request in zip(runs, requests, strict=True):
        if changed := [key for key in request if request[key] != requests[0].get(key)]:
            raise MismatchError(
                f"{run.folder} and {runs[0].folder} are of different runs ({', '.join(changed)} "
                "differ): merge the shards of one command"
            )
    shards = [run.manifest["request"]["shard"] or "1/1" for run in runs]
    of = int(shards[0].split("/")[1])
    wanted = [f"{number}/{of}" for number in range(1, of + 1)]
    if missing := [shard for shard in wanted if shard not in shards]:
        raise UsageError(f"shard {missing[0]} is missing: name the folders of all {of}")
    if len(shards) > of:
        raise UsageError(f"{len(shards)} folders are named and the run has {of} shards: name each "
                         "once")  # fmt: skip


def join_runs(runs: "Sequence[SavedRun]", folder: Path, report: Mapping[str, Any]) -> None:
    """Keep the shards of a run as one run, complete with its report."""
    first = runs[0].manifest
    about = ("paired", "keep", "vocabulary_size", "models", "environment", "notices")
    request = {**first["request"], "shard": None}
    picked = {key: first[key] for key in about}
    with writing(folder, request, runs[0].table, runs[0].names, picked) as whole:
        parts = (part for run in runs for part in _read_parts(run.folder, run.manifest))
        whole.fill(parts, report)


def gather(runs: "list[SavedRun]", keep: int | None = None) -> Evaluation:
    """The columns of runs that share one window table, each with some of its batches.

    ``keep`` is as in ``evaluate``, and where it is not given as it was in the run.
    """
    first = runs[0]
    keep = first.manifest["keep"] if keep is None else keep
    found = Gathered(first.table, paired=first.paired, keep=keep)
    for run in runs:
        for batch in _read_parts(run.folder, run.manifest):
            found.add(batch)
    return found.finish()


@contextlib.contextmanager
def writing(
    folder: Path,
    request: Mapping[str, Any],
    table: WindowTable,
    names: TokenNames,
    about: Mapping[str, Any],
) -> Iterator[RunFolder]:
    """Have a folder to write a run to, or to go on with one that was killed.

    ``request`` is what makes it the same run; ``about`` what a report needs beside the columns.

    Raises:
        OutputError: the folder holds something else or another run, or another process writes to
            it.
    """
    check_run_place(folder)
    try:
        folder.mkdir(exist_ok=True)
        with filelock.FileLock(folder / LOCK, timeout=0):
            run = _begin(folder, request, table, names, about)
            try:
                yield run
            finally:
                run.flush()
    except filelock.Timeout:
        raise OutputError(
            f"another process is writing to {folder}: wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error


def check_run_place(folder: Path) -> None:
    """Find out before the long work whether a run can be kept in a folder.

    Raises:
        OutputError: it is no folder, holds something else, or its own folder is missing.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"cannot keep the run in {folder}: it is a file; name a folder")
    if not folder.exists() and not folder.parent.is_dir():
        raise OutputError(f"cannot keep the run in {folder}: there is no folder {folder.parent}")
    if not folder.exists() or is_run(folder):
        return
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in (LOCK, WINDOWS, TOKENIZER))
    if foreign := [name for name in foreign if not name.endswith(".tmp")]:
        raise OutputError(f"{folder} holds {foreign[0]} and is no run: choose another folder")


def is_run(folder: Path) -> bool:
    """Whether a path is the folder of a run, complete or not."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def open_run(folder: Path) -> SavedRun:
    """Open a complete run.

    Raises:
        SourceError: it is incomplete, damaged, foreign or of another version.
    """
    manifest = _read_manifest(folder)
    if not manifest["complete"]:
        raise SourceError(f"{folder} is incomplete: run the same command again, and it goes on")
    for name, entry in manifest["files"].items():
        check_file(folder / name, entry)
    return SavedRun(
        folder=folder,
        manifest=manifest,
        table=read_windows(folder, manifest),
        names=_read_names(folder, manifest),
    )


def windows_digest(table: WindowTable) -> str:
    """sha256 of the tokens and windows of a table: runs in which it is equal pair by token."""
    return hashlib.sha256(safetensors.torch.save(window_tensors(table))).hexdigest()


def _begin(
    folder: Path,
    request: Mapping[str, Any],
    table: WindowTable,
    names: TokenNames,
    about: Mapping[str, Any],
) -> RunFolder:
    request = {**request, "windows": windows_digest(table)}
    if is_run(folder):
        return RunFolder(folder, _manifest_to_go_on_with(folder, request))
    named, files = _named(names), dict[str, Any]()
    put(folder / WINDOWS, safetensors.torch.save(window_tensors(table)), files)
    if isinstance(names, Vocabulary):
        put(folder / TOKENIZER, names.to_json().encode(), files)
    run = RunFolder(
        folder,
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "complete": False,
            "request": request,
            **about,
            "protocol": table.protocol,
            "corpora": [{"name": c.name, "sha256": c.sha256} for c in table.corpora],
            "documents": [document.name for document in table.documents],
            "masking": masking_of(table),
            "names": named,
            "files": files,
            "parts": [],
        },
    )
    run._save()
    return run


def _manifest_to_go_on_with(folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    manifest = _read_manifest(folder)
    before = manifest["request"]
    if changed := [name for name in request if request[name] != before.get(name)]:
        shown = ", ".join(f"{n} was {before.get(n)} and is {request[n]}" for n in changed)
        raise OutputError(
            f"{folder} holds another run ({shown}): repeat its command, or choose another folder"
        )
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"cannot read the run {folder}: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise SourceError(f"{folder} is no run of klcli")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise SourceError(
            f"{folder} is a run of version {manifest.get('format_version')!r}, and this klcli "
            f"reads version {FORMAT_VERSION}: use a matching klcli"
        )
    if manifest.pop("sha256", None) != seal(manifest):
        raise SourceError(f"the manifest of {folder} is damaged or was altered: run again")
    return manifest


def _named(names: TokenNames) -> dict[str, Any]:
    if isinstance(names, Vocabulary):
        ids = {"bos_id": names.bos_id, "eos_id": names.eos_id, "mask_id": names.mask_id}
        ids["unknown_id"] = names.unknown_id
        return {"tokenizer": ids}
    pieces = names.pieces if isinstance(names, NamedTokens) else {}
    return {"size": names.size, "pieces": {str(i): piece.hex() for i, piece in pieces.items()}}


def _read_names(folder: Path, manifest: Mapping[str, Any]) -> TokenNames:
    named = manifest["names"]
    if "tokenizer" in named:
        return Vocabulary(Tokenizer.from_file(str(folder / TOKENIZER)), **named["tokenizer"])
    if named["pieces"]:
        pieces = {int(i): bytes.fromhex(piece) for i, piece in named["pieces"].items()}
        return NamedTokens(named["size"], pieces)
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
        kept={
            name: np.concatenate([batch.kept[name] for batch in batches])
            for name in batches[0].kept
        },
        padded_mass={side: max(batch.padded_mass[side] for batch in batches) for side in sides},
        kinds=batches[0].kinds,
    )


def _tensors(batch: ScoredBatch) -> dict[str, np.ndarray[Any, Any]]:
    tensors = {"batches": np.array(batch.batches, dtype=np.int64), "index": batch.index}
    tensors |= dict(batch.columns)
    return tensors | {f"{KEPT}{name}": values for name, values in batch.kept.items()}


def _read_parts(folder: Path, manifest: Mapping[str, Any]) -> Iterator[ScoredBatch]:
    for entry in manifest["parts"]:
        check_file(folder / entry["name"], entry)
        tensors = safetensors.numpy.load_file(str(folder / entry["name"]))
        batches, index = tensors.pop("batches"), tensors.pop("index")
        kept = {
            name.removeprefix(KEPT): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(KEPT)
        }
        yield ScoredBatch(
            batches=cast("list[int]", batches.tolist()),
            index=index,
            columns=tensors,
            kept=kept,
            padded_mass=entry["padded_mass"],
            kinds=entry["kinds"],
        )
