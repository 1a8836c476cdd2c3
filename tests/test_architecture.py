"""The flow is the folder: what may import what, and what must not be loaded for a glance."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import klcli

PACKAGE = Path(klcli.__file__).parent
FLOW = [
    "errors", "choices", "hooks", "torchrun",
    "text", "storage", "sources", "align", "measure", "runs", "judge", "render",
    "keywords", "request", "rank_request", "answer_request", "documented", "review", "checks",
    "workflow", "layerwise", "ranking", "answering", "api", "testing", "inspection", "cli",
]  # fmt: skip
"""A folder, or a file beside them, imports only from those before it."""
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


def name_of(path: Path) -> str:
    """The dotted name of a file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def functions_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every function of a file, with the lines of its body less the docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body and (last := body[-1].end_lineno) is not None:
                yield f"{path.name}:{node.name}", last - body[0].lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_with_the_flow(path: Path) -> None:
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if part in ("__init__", "__main__"):
        return
    later = FLOW[FLOW.index(part) + 1 :]
    assert not {name for name in imports_of(path) if part_of(name) in later}


def test_no_file_imports_itself_by_way_of_others() -> None:
    known = {name_of(path): imports_of(path) for path in MODULES}
    needs = {name: (found & known.keys()) - {name} for name, found in known.items()}
    needs["klcli"] = set()  # it imports what it hands out only when that is asked for
    TopologicalSorter(needs).prepare()  # raises CycleError, which names the circle


def test_no_bag_of_options_travels() -> None:
    """Options become requests in one file; in no other does a mapping of them go anywhere."""
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(options|opts)\.get\(", text), path
        bag = r"\b(options|opts): [^,)\n]*(Mapping|dict)\["
        assert name_of(path) == "klcli.request" or not re.search(bag, text), path
        assert not re.search(r"options: .*Mapping\[str, Any\]", text), path


def test_functions_and_modules_are_short() -> None:
    """Kernels may be long: arithmetic that reads as one formula stays one function."""
    lengths = [one for path in MODULES for one in functions_of(path)]
    sizes = sorted(size for _, size in lengths)
    assert sizes[int(0.9 * (len(sizes) - 1))] <= 20
    kernels = PACKAGE / "measure" / "kernels"
    others = [one for path in MODULES if kernels not in path.parents for one in functions_of(path)]
    assert not [name for name, size in others if size > 60]
    lines = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in MODULES}
    assert len(lines) == len(MODULES)
    assert not {name: count for name, count in lines.items() if count > 450}
    assert lines["klcli.api"] <= 280


def test_one_file_reads_the_environment_of_torchrun() -> None:
    read = re.compile(r"(environ|getenv)[^\n]*(WORLD_SIZE|RANK)")
    readers = {name_of(path) for path in MODULES if read.search(path.read_text(encoding="utf-8"))}
    assert readers == {"klcli.torchrun"}


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
        "from klcli.cli import cli; cli(['explain', 'kl'], standalone_mode=False)",
        "from klcli.judge.report import Report",
        "import klcli.api, klcli.request, klcli.review",
        "import klcli.testing",
        "import klcli.render.terminal, klcli.render.data, klcli.render.files",
    ],
    ids=[
        "import",
        "help",
        "help-of-a-command",
        "version",
        "explain",
        "report",
        "doors",
        "testing",
        "render",
    ],
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
    assert set(klcli.__all__) <= set(dir(klcli))
    assert all(getattr(klcli, name) is not None for name in klcli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = klcli.nothing
