"""How a source is opened."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from klcli.errors import UsageError

if TYPE_CHECKING:
    from klcli.text.vocabulary import Vocabulary

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Values = Literal["auto", "logits", "log_probs", "probs"]
Task = Literal["causal", "masked"]
TaskChoice = Literal["auto", "causal", "masked"]


def choose_device(name: str) -> str:
    """The device that a name means: ``auto`` is a GPU where there is one, its own for each rank."""
    import torch

    if name != "auto":
        try:
            return str(torch.device(name))
        except RuntimeError:
            raise UsageError(
                f"--device {name!r} is no device: one of auto, cpu, cuda, cuda:N or mps is wanted"
            ) from None
    if torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How one source is opened. What does not apply to its kind is ignored.

    ``task``, ``dtype``, ``device``, ``revision``, ``trust_remote_code``, ``compile`` (its blocks,
    with torch.compile) and ``batch_tokens`` (the ids of one forward pass) are for models;
    ``token_ids`` (a ``.npy`` file), ``tokenizer`` (a model whose tokenizer it is) and ``values``
    for logit files.
    """

    task: TaskChoice = "auto"
    batch_tokens: int | None = None

    dtype: DtypeName = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    compile: bool = False
    token_ids: str | None = None
    tokenizer: str | None = None
    values: Values = "auto"


def load_vocabulary(options: LoadOptions) -> "Vocabulary | None":
    """The tokenizer that a user named for a logit file, None where none was named.

    Raises:
        SourceError: there is none of that name.
    """
    if options.tokenizer is None:
        return None
    folder = Path(options.tokenizer)
    if (folder / "manifest.json").is_file():
        from klcli.sources.recording import read_manifest, read_vocabulary

        return read_vocabulary(folder, read_manifest(folder))
    from klcli.sources.loading import load_tokenizer

    return load_tokenizer(options.tokenizer, options)
