"""What a run says of itself while it goes on: how far it is, how fast, and when it will end."""

import io
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from klcli import compare
from klcli.cli.bar import Bar
from klcli.cli.pace import Pace
from klcli.cli.progress import Forecast, progress_hooks
from klcli.errors import KlcliError
from tests.running import Run


class Clock:
    """A clock that stands still until it is moved."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("klcli.cli.pace.time", clock)
    return clock


def pace_of(clock: Clock, *marks: tuple[float, int], total: int = 1000) -> Pace:
    """A pace that was told at these seconds that so many tokens are done."""
    pace = Pace()
    for clock.now, done in marks:
        pace.at(done, total)
    return pace


# The estimate


def test_before_the_first_batch_nothing_is_promised(clock: Clock) -> None:
    pace = pace_of(clock, (0, 0))
    clock.now = 40
    assert pace.line() == "0 of 1,000 tokens  40 s"


def test_the_estimate_is_there_after_the_first_batch_however_long_it_took(clock: Clock) -> None:
    pace = pace_of(clock, (0, 0), (300, 100))
    assert pace.line() == "100 of 1,000 tokens  45m00s left  0 tokens/s  5m00s"


def test_what_was_done_before_a_run_went_on_counts_for_nothing(clock: Clock) -> None:
    assert pace_of(clock, (0, 800), (10, 900)).left == 10


def test_the_first_batch_counts_for_nothing_once_there_is_another(clock: Clock) -> None:
    """Kernels are compiled in it."""
    pace = pace_of(clock, (0, 0), (60, 100), (65, 200), (70, 300))
    assert (pace.rate, pace.left) == (20, 35)


def test_the_estimate_runs_down_while_a_batch_is_read(clock: Clock) -> None:
    pace = pace_of(clock, (0, 0), (10, 100))
    clock.now = 40
    assert pace.left == 60
    clock.now = 400
    assert pace.left == 0


def test_a_second_pass_begins_anew_and_the_closing_line_has_both(clock: Clock) -> None:
    """With --one-at-a-time the text is read twice; several candidates read it once each."""
    pace = pace_of(clock, (0, 0), (10, 1000), (100, 0), (140, 1000))
    assert pace.rate == 25
    assert pace.closing() == "2,000 tokens in 50 s, 40 tokens/s"


def test_a_narrow_line_says_the_same_in_fewer_letters(clock: Clock) -> None:
    pace = pace_of(clock, (0, 0), (10, 100), total=15_759)
    assert pace.line(short=True) == "100/15,759  26m06s left  10/s  10 s"


# On a terminal


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_line_fits_the_terminal(clock: Clock, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    pace = pace_of(clock, (0, 0), (100, 5000), (308, 9000), total=15_759)
    bar = Bar(pace, console)
    bar.score(pace.done, pace.total)
    with console.capture() as capture:
        console.print(bar._drawn.get_renderable())
    (line,) = capture.get().rstrip("\n").splitlines()
    text = "".join(part for part in line.split("\x1b") for part in [part.split("m", 1)[-1]])
    assert len(text) <= width
    assert text.startswith("scoring ")
    assert "5m51s left" in text
    assert "19 tokens/s" in text or "19/s" in text
    assert "5m08s" in text


def test_what_is_done_meanwhile_stands_in_the_line(clock: Clock) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    bar = Bar(Pace(), console)
    bar.wait("loading model\x1b[31m")
    bar.score(0, 10)
    bar.wait("compiling the kernel (first run only)")
    descriptions = [task.description for task in bar._drawn.tasks]
    assert descriptions == ["compiling the kernel (first run only)"]
    bar.score(5, 10)
    (task,) = bar._drawn.tasks
    assert (task.description, task.completed, task.total) == ("scoring", 5, 10)


# In a pipe


def test_a_long_run_says_once_when_it_will_end(clock: Clock) -> None:
    said: list[str] = []
    pace = Pace()
    forecast = Forecast(pace, said.append)
    for second in range(0, 60, 2):
        clock.now = second
        pace.at(5 * second, 10_010)
        forecast.look()
    assert said == ["30 of 10,010 tokens done, about 33 min left"]


def test_a_short_run_says_nothing_before_its_end(clock: Clock) -> None:
    said: list[str] = []
    pace = Pace()
    forecast = Forecast(pace, said.append)
    for second in range(0, 12, 2):
        clock.now = second
        pace.at(100 * second, 1_100)
        forecast.look()
    assert said == []


def test_a_run_ends_with_how_long_it_took(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_hooks(quiet=False) as hooks:
        for clock.now, done in ((0, 0), (308, 15_759)):
            hooks["progress"](done, 15_759)
    assert capsys.readouterr() == ("", "15,759 tokens in 5m08s, 51 tokens/s\n")


def test_where_nothing_was_scored_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_hooks(quiet=False) as hooks:
        hooks["status"]("loading model")
    assert capsys.readouterr() == ("", "")


def test_an_error_stands_alone(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with progress_hooks(quiet=False) as hooks:
            hooks["progress"](0, 10)
            hooks["progress"](5, 10)
            raise KlcliError("no")

    with pytest.raises(KlcliError):
        fail()
    assert capsys.readouterr().err == ""


def test_quiet_is_quiet(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_hooks(quiet=True) as hooks:
        hooks["announce"]("something")
        hooks["progress"](0, 10)
        hooks["progress"](10, 10)
    assert capsys.readouterr() == ("", "")


# What a run tells


@pytest.fixture
def told(reference: Path, candidate: Path, corpus: Path, tmp_path: Path) -> list[Any]:
    """What a run tells of itself, in order."""
    told: list[Any] = []
    compare(
        reference, candidate, corpus, context=64, limit=4, batch_tokens=128,
        run=tmp_path / "a.run",
        status=told.append, progress=lambda *tokens: told.append(tokens),
    )  # fmt: skip
    return told


def test_a_run_tells_what_it_does_and_how_far_it_is(
    told: list[Any], reference: Path, candidate: Path
) -> None:
    told = [one for one in told if not str(one).startswith("compiling")]
    assert told == [
        f"loading {reference}", f"loading {candidate}", "reading the text",
        "hashing what predicts", (0, 256), (128, 256), (256, 256),
    ]  # fmt: skip


def test_a_kernel_that_has_to_be_compiled_is_announced() -> None:
    import numba

    from klcli.measure.kernels.compilation import COMPILING, telling_of_compilation

    told: list[str] = []
    kernel = numba.njit(lambda x: x + 1)
    for _ in range(2):
        with telling_of_compilation(told.append):
            assert kernel(1) == 2
    assert told == [COMPILING]


def test_bytes_of_a_download_are_told() -> None:
    """As huggingface_hub moves its bars, which are not shown."""
    from klcli.sources.hf.hub import no_bars, telling_of_downloads

    told: list[str] = []
    tqdm: Any = import_module("huggingface_hub.utils.tqdm").tqdm
    with telling_of_downloads(told.append), no_bars():
        bar = tqdm(desc="model.safetensors", total=538_000_000, initial=100_000_000, unit="B")
        bar.update(10_000_000)
        bar.update(428_000_000)
        other = tqdm(desc="Loading weights", total=3)
        other.update(1)
    bar.update(1)
    assert told == [
        "downloading model.safetensors: 110.0 of 538.0 MB",
        "downloading model.safetensors: 538.0 of 538.0 MB",
    ]


def test_the_command_line_ends_with_the_time_of_a_run(
    klcli: Run, reference: Path, candidate: Path, corpus: Path
) -> None:
    line = ("compare", reference, candidate, corpus, "--context", "64", "--limit", "2")
    assert klcli(*line).err.startswith("128 tokens in ")
    assert klcli(*line, "--quiet").err == ""
