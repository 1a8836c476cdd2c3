"""How a source is opened, and recorded, as the options say it."""

import re
from dataclasses import dataclass

from klcli.choices import (
    DEFAULT_TOP_K,
    DtypeName,
    Engine,
    FlashAttention,
    KvCacheType,
    RecordingChoice,
    TaskChoice,
    ValueChoice,
    at_least,
    check_fields,
)
from klcli.errors import UsageError

DEVICE = re.compile(
    r"auto|(cpu|cuda|mps|xpu|hpu|ipu|npu|mtia|maia|hip|xla|ve|vulkan|meta|privateuseone)(:\d+)?"
)
"""The devices of torch, by their names: to ask torch itself would be to load it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How one source is opened. What does not apply to its kind is ignored.

    For models are ``task``, ``dtype``, ``device``, ``adapter`` (a folder), ``revision``,
    ``trust_remote_code``, ``allow_unused_weights`` (of the checkpoint),
    ``allow_other_architecture`` (than a language model's), ``compile`` (the blocks, with
    torch.compile) and ``batch_tokens`` (the ids of one forward pass). For logit files are
    ``token_ids`` (a ``.npy`` file), ``tokenizer`` (a model whose tokenizer it is) and ``values``.
    ``engine`` is what runs a GGUF file; for llama.cpp are ``kv_cache_type``, ``flash_attention``,
    ``threads`` and ``gpu_layers`` (all that fit where None).

    Raises:
        UsageError: a value is not one of the choices, or too small.
    """

    task: TaskChoice = "auto"
    batch_tokens: int | None = at_least(1)
    dtype: DtypeName = "auto"
    device: str = "auto"
    adapter: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    allow_unused_weights: bool = False
    allow_other_architecture: bool = False
    compile: bool = False
    token_ids: str | None = None
    tokenizer: str | None = None
    values: ValueChoice = "auto"
    engine: Engine = "transformers"
    kv_cache_type: KvCacheType = "f16"
    flash_attention: FlashAttention = "auto"
    threads: int | None = at_least(1)
    gpu_layers: int | None = at_least(0)

    def __post_init__(self) -> None:
        check_fields(self)
        if not DEVICE.fullmatch(self.device):
            raise unknown_device(self.device)

    @property
    def paths(self) -> list[str]:
        """What is read besides the source itself."""
        return [path for path in (self.token_ids, self.tokenizer, self.adapter) if path]


def unknown_device(name: str) -> UsageError:
    """What to say of a name that is no device's."""
    return UsageError(
        f"--device {name!r} is not a device: choose one of auto, cpu, cuda, cuda:N or mps"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingFormat:
    """What a recording keeps of each token: the kind, and for ``topk`` how many ids.

    Raises:
        UsageError: a kind that is not one of the choices, or no ids.
    """

    kind: RecordingChoice = "auto"
    top_k: int = at_least(1, DEFAULT_TOP_K)

    def __post_init__(self) -> None:
        check_fields(self)
