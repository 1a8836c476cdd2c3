"""A manifest whose seal is right and whose fields are not: one error, or the same numbers."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from klcli import compare, record, report
from klcli.errors import KlcliError
from klcli.storage.manifest import MANIFEST, save

OTHERS: tuple[Any, ...] = (None, -1, 0, 10**9, 1.5, "", "../victim", [], {}, [None], True)
"""What is put in the place of a value."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    """A run of two logit files."""
    folder = tmp_path_factory.mktemp("damaged") / "run"
    pair = [fixtures / f"logits/{name}.npz" for name in ("reference", "candidate")]
    compare(*pair, run=folder, limit=2)
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    """A recording of the hidden states of a model."""
    folder = tmp_path_factory.mktemp("damaged") / "recording"
    record(fixtures / "models/reference", fixtures / "corpus.txt", folder, limit=2)
    return folder


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    named = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in named:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def mutants(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The manifest with one value removed, or another in its place."""
    for path in places(manifest):
        for other in ("removed", *OTHERS):
            changed = copy.deepcopy(manifest)
            inner: Any = changed
            for key in path[:-1]:
                inner = inner[key]
            if other == "removed":
                del inner[path[-1]]
            elif _is_as_good(path, inner[path[-1]], other):
                continue
            else:
                inner[path[-1]] = other
            yield f"{'.'.join(map(str, path))}: {other!r}", changed


def _is_as_good(path: tuple[Any, ...], value: Any, other: Any) -> bool:
    """Whether the other value is the same, or that of another head: a seal is no signature."""
    is_factor = path[0] == "head" and type(other) in (int, float) and other > 0
    return is_factor or (value == other and type(value) is type(other))


def hold(folder: Path, read: Callable[[], float]) -> None:
    """Read every mutant of a manifest: an error of one line, or the number that is true."""
    intact = (folder / MANIFEST).read_bytes()
    manifest = json.loads(intact)
    del manifest["sha256"]
    true, wrong = read(), []
    try:
        for name, changed in mutants(manifest):
            save(folder, changed)
            try:
                found = read()
            except KlcliError as error:
                if "\n" in str(error):
                    wrong.append(f"{name}: {error}")
            except Exception as error:
                wrong.append(f"{name}: {type(error).__name__}: {error}")
            else:
                if found != true:
                    wrong.append(f"{name}: {found} for {true}")
    finally:
        (folder / MANIFEST).write_bytes(intact)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_a_run_with_any_field_wrong_is_refused_or_means_the_same(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    hold(folder, lambda: float(report(folder).metrics["kl"]["mean"] or 0.0))


@pytest.mark.slow
def test_a_recording_with_any_field_wrong_is_refused_or_means_the_same(
    recording: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "recording"
    shutil.copytree(recording, folder)
    hold(folder, lambda: float(compare(folder, folder).metrics["nll_reference"]["mean"] or 0.0))
