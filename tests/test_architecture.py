"""The flow is the folder: what may import what, and what must not be loaded for a glance."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import klcli

PACKAGE = Path(klcli.__file__).parent
FLOW = ["errors", "text", "sources", "measure", "judge", "render"]
"""A folder imports only from those before it; ``api`` and ``cli`` use them all."""
HEAVY = ["torch", "transformers"]
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def part_of(module: str) -> str:
    """The folder of klcli that a dotted name lies in."""
    return module.split(".")[1] if module.startswith("klcli.") else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_with_the_flow(path: Path) -> None:
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if part not in FLOW:
        return
    later = {*FLOW[FLOW.index(part) + 1 :], "api", "cli"}
    assert not {name for name in imports_of(path) if part_of(name) in later}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_sources_know_transformers(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] != "sources":
        assert not {n for n in imports_of(path) if n.split(".")[0] == "transformers"}


@pytest.mark.parametrize(
    "code",
    [
        "import klcli",
        "from klcli.cli import cli; cli(['--help'], standalone_mode=False)",
        "from klcli.cli import cli; cli(['compare', '--help'], standalone_mode=False)",
        "from klcli.cli import cli; cli(['--version'], standalone_mode=False)",
        "from klcli.judge.report import Report",
        "import klcli.render.terminal, klcli.render.data, klcli.render.files",
    ],
    ids=["import", "help", "help-of-a-command", "version", "report", "render"],
)
def test_a_glance_loads_neither_torch_nor_transformers(code: str) -> None:
    program = f"{code}\nimport sys\nsys.exit(','.join({HEAVY} & sys.modules.keys()) or 0)".replace(
        str(HEAVY), str(set(HEAVY))
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_python_interface_is_what_it_says() -> None:
    assert set(klcli.__all__) <= set(dir(klcli)) | set(klcli._HOMES)
    assert all(getattr(klcli, name) is not None for name in klcli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = klcli.nothing
