"""Devices: what a name means."""

import pytest
import torch

from klcli.sources.devices import choose_device


@pytest.mark.parametrize(
    ("name", "rank", "device"),
    [
        ("auto", None, "cuda:1"),
        ("cuda", None, "cuda:1"),
        ("cuda:0", None, "cuda:0"),
        ("auto", "3", "cuda:3"),
        ("cpu", None, "cpu"),
    ],
)
def test_a_gpu_is_always_named_by_its_number(
    name: str, rank: str | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    if rank is not None:
        monkeypatch.setenv("WORLD_SIZE", "4")
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device(name) == device


def test_without_a_gpu_the_name_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("cuda") == "cuda"
