"""Where no bar can be drawn a long run says once how long it will take."""

import pytest

from klcli.cli.progress import Forecast


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands where the last number says."""
    times = [0.0]
    monkeypatch.setattr("klcli.cli.progress.time.monotonic", lambda: times[-1])
    return times


def test_a_long_run_says_once_when_it_will_end(clock: list[float]) -> None:
    said: list[str] = []
    forecast = Forecast(said.append)
    for second in range(0, 60, 2):
        clock.append(float(second))
        forecast.at(10 * (second + 1), 10_010)
    assert said == ["70 of 10,010 tokens are scored, about 17 min left"]


def test_a_short_run_says_nothing(clock: list[float]) -> None:
    said: list[str] = []
    forecast = Forecast(said.append)
    for second in range(0, 12, 2):
        clock.append(float(second))
        forecast.at(100 * (second + 1), 1_100)
    assert said == []


def test_a_second_pass_of_a_single_batch_is_no_error(clock: list[float]) -> None:
    """With --one-at-a-time the text is read twice, and each pass may be one batch."""
    said: list[str] = []
    forecast = Forecast(said.append)
    forecast.at(128, 128)
    clock.append(9.0)
    forecast.at(128, 128)
    assert said == []


def test_a_quiet_run_says_nothing(clock: list[float]) -> None:
    forecast = Forecast(None)
    clock.append(100.0)
    forecast.at(1, 10**9)
    forecast.at(2, 10**9)
