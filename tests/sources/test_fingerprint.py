"""The digest of a model is of every bit of its weights, whatever they are made of."""

from typing import Any

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from klcli.sources.hf import fingerprint
from klcli.sources.hf.fingerprint import weights_digest

DTYPES = [
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.int8,
    torch.uint8, torch.int64, torch.bool,
]  # fmt: skip


class Config:
    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def to_dict(self) -> dict[str, Any]:
        return self._settings


class Model(torch.nn.Module):
    """A model of one weight, and a config."""

    def __init__(self, weight: torch.Tensor, **settings: Any) -> None:
        super().__init__()
        self.config = Config(**settings)
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it may change the weights")


def some(dtype: torch.dtype = torch.float32, rows: int = 100) -> torch.Tensor:
    return torch.arange(rows * 64).remainder(120).reshape(rows, 64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("place", [0, 1, 777, 6399])
def test_every_number_counts(dtype: torch.dtype, place: int) -> None:
    """A sample at a fixed stride has 0 and others, but not 1, 777 or the last."""
    weight, changed = some(dtype), some(dtype)
    flat = changed.view(-1).view(torch.uint8)
    flat[place * changed.itemsize] ^= 1
    assert weights_digest(Model(weight)) == weights_digest(Model(some(dtype)))
    assert weights_digest(Model(weight)) != weights_digest(Model(changed))


def test_the_bits_count_and_not_what_they_mean() -> None:
    """-0.0 == 0.0, and NaN is not NaN."""
    minus, nan = torch.full((4,), -0.0), torch.full((4,), torch.nan)
    assert weights_digest(Model(minus)) != weights_digest(Model(-minus))
    assert weights_digest(Model(nan)) == weights_digest(Model(nan.clone()))


def test_type_shape_name_and_config_count() -> None:
    models = [
        Model(some()),
        Model(some().view(50, 128)),
        Model(some().view(torch.int32)),
        Model(some(), eps=1),
        torch.nn.Sequential(Model(some())),
    ]
    models[-1].config = models[0].config
    assert len({weights_digest(model) for model in models}) == len(models)


def test_how_the_numbers_lie_in_memory_does_not_count() -> None:
    turned = some().T.contiguous().T
    assert not turned.is_contiguous()
    assert weights_digest(Model(turned)) == weights_digest(Model(some()))
    assert len(weights_digest(Model(torch.empty(0)))) == 64


def test_pieces_and_threads_do_not_change_what_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights_digest(Model(some(rows=3)))
    monkeypatch.setattr(fingerprint, "MOST_THREADS", 1)
    assert weights_digest(Model(some(rows=3))) == before
    monkeypatch.setattr(fingerprint, "PIECE", 100)
    assert len({weights_digest(Model(some(rows=n))) for n in (3, 4, 5)}) == 3


def test_buffers_count_if_they_are_saved() -> None:
    """Others are worked out of the config, perhaps on another device, or are a cache."""
    plain, saved, unsaved = (Model(some()) for _ in range(3))
    saved.register_buffer("scale", torch.ones(2))
    unsaved.register_buffer("cache", torch.ones(2), persistent=False)
    assert weights_digest(plain) == weights_digest(unsaved)
    assert weights_digest(plain) != weights_digest(saved)


def two(first: torch.Tensor, second: torch.Tensor) -> Model:
    model = Model(some())
    model.weight = torch.nn.Parameter(
        TwoTensor(first, second),  # type: ignore[no-untyped-call]
        requires_grad=False,
    )
    return model


def test_every_part_of_a_quantised_weight_counts() -> None:
    """Tensors of torchao are made of others: codes, scales, zero points."""
    codes, scales = some(), some() / 7
    plain = weights_digest(two(codes, scales))
    assert plain == weights_digest(two(codes.clone(), scales.clone()))
    assert plain != weights_digest(two(codes, scales + 1))
    assert plain != weights_digest(two(codes + 1, scales))


class QuantState:
    """As bitsandbytes has it: the scales of 4-bit codes stand beside the weight."""

    def __init__(self, scale: float) -> None:
        self._scale = torch.tensor([scale])

    def as_dict(self, *, packed: bool) -> dict[str, torch.Tensor]:
        assert packed
        return {"absmax": self._scale}


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [("quant_state", QuantState(1), QuantState(2)), ("SCB", torch.ones(1), torch.zeros(1))],
)
def test_scales_beside_a_weight_count(name: str, one: object, other: object) -> None:
    models = [Model(some(torch.uint8)) for _ in range(3)]
    for model, scales in zip(models[1:], (one, other), strict=True):
        setattr(model.weight, name, scales)
    assert len({weights_digest(model) for model in models}) == 3


def test_the_name_of_a_gguf_file_does_not_count() -> None:
    one, other = (
        Model(some(), quantization_config={"quant_method": "gguf", "gguf_file": name})
        for name in ("a.gguf", "b.gguf")
    )
    assert weights_digest(one) == weights_digest(other)
