"""What a file holds: recordings, logit files, llama.cpp base files, lists of tokens, reports."""

from pathlib import Path
from typing import Any

from klcli.errors import SourceError
from klcli.judge.saved import read_saved_report
from klcli.sources.kinds import kind_of
from klcli.sources.opening import open_source
from klcli.sources.options import LoadOptions
from klcli.sources.recording.format import HEAD, RECORDING, rows_in


def inspect(path: str) -> dict[str, Any]:
    """Say what a file or folder holds, without running a model.

    Raises:
        KlcliError: there is nothing there, or nothing that klcli knows.
    """
    if not Path(path).exists():
        raise SourceError(f"there is nothing at {path!r}: check the path")
    if path.endswith(".json"):
        return _of_report(path)
    kind = kind_of(path)
    if kind == "recording":
        return _of_recording(Path(path))
    if kind == "model":
        raise SourceError(
            f"{path} is not a recording, logit file or report; klcli perplexity runs a model"
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


def _of_recording(folder: Path) -> dict[str, Any]:
    manifest = RECORDING.read(folder)
    rows = rows_in(manifest)
    shards = sum(shard["bytes"] for shard in manifest["shards"])
    files = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    return {
        "kind": f"recording of {manifest['kind']}",
        "complete": manifest["complete"],
        **{key: manifest["model"][key] for key in ("source", "dtype", "architecture")},
        "protocol": ", ".join(f"{k} {v}" for k, v in manifest["protocol"].items() if v is not None),
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
