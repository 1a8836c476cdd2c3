"""Libraries show nothing while a model is loaded, and may show what they like afterwards."""

import logging

import pytest
import tqdm

from klcli.sources.hf.quiet import quiet_transformers


def _be_loud() -> None:
    print("a line")  # noqa: T201
    logging.getLogger("a.library").warning("advice")
    for _ in tqdm.tqdm([1, 2], disable=False):
        pass


def test_nothing_is_shown_within(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_transformers():
        _be_loud()
    assert capfd.readouterr() == ("", "")


def test_all_is_as_before_afterwards(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)
    with pytest.raises(ValueError, match="in the midst"), quiet_transformers():
        raise ValueError("in the midst")
    _be_loud()
    out, err = capfd.readouterr()
    assert out == "a line\n"
    assert "100%" in err
