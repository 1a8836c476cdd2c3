"""What all tests share: no network, and where fixtures and shared material lie."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from klcli.cli import main
from tests.running import Outcome, Run

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
# Tiny models gain nothing of a second thread, and lose much where the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait spinning take the processor from those they wait for where it is busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_configure() -> None:
    """Interpret Triton's kernels where there is no GPU: it asks when it is first imported."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of fixtures."""
    return FIXTURES


@pytest.fixture(scope="session")
def shared() -> Path:
    """Figures of other programs and real text, which lie beside a checkout, not in it."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: it holds the figures of other programs and real text")
    return SHARED


@pytest.fixture
def klcli(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Outcome(code=int(exit_.value.code or 0), out=out, err=err)

    return run


@pytest.fixture
def reference(fixtures: Path) -> Path:
    """A tiny trained model."""
    return fixtures / "models" / "reference"


@pytest.fixture
def candidate(fixtures: Path) -> Path:
    """The same model, rounded to 4 bits."""
    return fixtures / "models" / "candidate"


@pytest.fixture
def corpus(fixtures: Path) -> Path:
    """Text of the language that the models know."""
    return fixtures / "corpus.txt"


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Real models have every processor."""
    if request.node.get_closest_marker("real") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)
