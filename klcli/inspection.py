"""What a file or folder holds: recordings, runs, logit files, base files, lists, reports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klcli.errors import SourceError
from klcli.judge.saved import read_saved_report
from klcli.runs.folder import REPORT, scored_tokens
from klcli.runs.format import RUN
from klcli.sources.kinds import kind_of
from klcli.sources.opening import open_source
from klcli.sources.options import LoadOptions
from klcli.sources.recording.format import HEAD, RECORDING, rows_in
from klcli.storage.tables import read_windows


def inspect(path: str) -> dict[str, Any]:
    """Say what a file or folder holds, without running a model.

    Raises:
        KlcliError: there is nothing there, or nothing that klcli knows.
    """
    if not Path(path).exists():
        raise SourceError(f"there is nothing at {path!r}: check the path")
    if path.endswith(".json"):
        return _of_report(path)
    if RUN.is_at(Path(path)):
        return _of_run(Path(path))
    kind = kind_of(path)
    if kind == "recording":
        return _of_recording(Path(path))
    if kind == "model":
        raise SourceError(
            f"{path} is not a recording, run, logit file or report; klcli perplexity runs a model"
        )
    source = open_source(path, LoadOptions())
    table = source.windows
    assert table is not None
    return {
        **source.provenance,
        "windows": len(table.windows),
        "rows": table.tokens,
        "bytes": Path(path).stat().st_size,
    }


def _of_report(path: str) -> dict[str, Any]:
    report = read_saved_report(path)
    fields = {"kind": "report", "command": report.command, "signature": report.signature}
    if report.shard is not None:
        fields["shard"] = report.shard
    return {**fields, **report.counts, "verdict": report.verdict}


def _of_run(folder: Path) -> dict[str, Any]:
    """What a run holds, complete or not, by its manifest and the checksums of its files."""
    manifest = RUN.read(folder)
    table = read_windows(folder, manifest)
    report = read_saved_report(str(folder / REPORT)) if manifest["complete"] else None
    return {
        "kind": "run",
        "command": "compare" if manifest["paired"] else "perplexity",
        "complete": manifest["complete"],
        "shard": manifest["request"]["shard"],
        **{side: model["source"] for side, model in manifest["models"].items()},
        "protocol": _protocol(manifest),
        "corpora": [corpus["name"] for corpus in manifest["corpora"]],
        "tokens": scored_tokens(folder, manifest),
        "tokens_in_all": table.tokens,
        "windows": len(table.windows),
        "parts": len(manifest["parts"]),
        "bytes": sum(entry["bytes"] for entry in (*manifest["parts"], *manifest["files"].values())),
        "signature": None if report is None else report.signature,
        "verdict": None if report is None else report.verdict,
    }


def _protocol(manifest: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in manifest["protocol"].items() if v is not None)


def _of_recording(folder: Path) -> dict[str, Any]:
    manifest = RECORDING.read(folder)
    rows = rows_in(manifest)
    shards = sum(shard["bytes"] for shard in manifest["shards"])
    files = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    return {
        "kind": f"recording of {manifest['kind']}",
        "complete": manifest["complete"],
        **{key: manifest["model"][key] for key in ("source", "dtype", "architecture")},
        "protocol": _protocol(manifest),
        "corpora": [corpus["name"] for corpus in manifest["corpora"]],
        "rows": rows,
        "rows_in_all": manifest["rows"],
        "vocabulary_width": manifest["width"],
        "shards": len(manifest["shards"]),
        "bytes": shards + sum(files.values()),
        "bytes_per_token": round(shards / rows, 1) if rows else None,
        "head_bytes": files.get(HEAD),
        "self_kl": manifest["self_kl"]["largest"],
        "noise": manifest["self_kl"]["noise"],
    }
