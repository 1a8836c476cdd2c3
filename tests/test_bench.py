"""That the benchmark's command runs; what it finds is looked at, not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_it_prints_a_table_and_writes_it_as_json(tmp_path: Path) -> None:
    found = tmp_path / "bench.json"
    arguments = ["files", "--scale", "0.01", "--json", str(found)]
    command = [sys.executable, "-m", "bench.run", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    figures = json.loads(found.read_text())["figures"]
    assert len(figures) == len(lines) - 2 == 2
    for line, figure in zip(lines[2:], figures, strict=True):
        assert figure["measure"] in line
        assert figure["spread"][0] <= figure["value"] <= figure["spread"][1]
        assert figure["met"] == (figure["value"] <= figure["goal"])
