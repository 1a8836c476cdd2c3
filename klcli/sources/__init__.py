"""Who predicts: models and logit files, all of one shape to everything downstream."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Union

from klcli.sources.options import LoadOptions

if TYPE_CHECKING:
    from klcli.sources.arrays import ArraySource
    from klcli.sources.causal import CausalSource
    from klcli.sources.llamacpp import BaseFileSource
    from klcli.sources.masked import MaskedSource
    from klcli.sources.recording import RecordingSource
    from klcli.sources.toplogprobs import TopLogprobsSource

OpenSource = Union[
    "CausalSource",
    "MaskedSource",
    "RecordingSource",
    "ArraySource",
    "BaseFileSource",
    "TopLogprobsSource",
]

BASE_FILE_MAGIC = b"_logits_"
ARRAY_SUFFIXES = (".npy", ".npz", ".pt", ".safetensors")


Kind = Literal["recording", "llama.cpp base file", "top log-probabilities", "logit file", "model"]


def kind_of(spec: str) -> Kind:
    """What a user named, as far as a look at it tells: by content, or by the name's ending."""
    path = Path(spec)
    if (path / "manifest.json").is_file():
        return "recording"
    if path.is_file() and is_base_file(path):
        return "llama.cpp base file"
    if spec.endswith((".jsonl", ".jsonl.gz")):
        return "top log-probabilities"
    return "logit file" if path.suffix in ARRAY_SUFFIXES else "model"


def is_base_file(path: Path) -> bool:
    """Whether a path is a base file of llama.cpp, known by its first 8 bytes whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(len(BASE_FILE_MAGIC)) == BASE_FILE_MAGIC
    except OSError:
        return False


def open_source(spec: str, options: LoadOptions) -> OpenSource:
    """Open what a user named: a recording, a logit file, or a model.

    Raises:
        SourceError: it cannot be opened.
    """
    kind = kind_of(spec)
    if kind == "recording":
        from klcli.sources.recording import open_recording

        return open_recording(spec, options)
    if kind == "llama.cpp base file":
        from klcli.sources.llamacpp import open_base_file

        return open_base_file(spec, options)
    if kind == "top log-probabilities":
        from klcli.sources.toplogprobs import open_top_logprobs

        return open_top_logprobs(spec, options)
    if kind == "logit file":
        from klcli.sources.arrays import open_arrays

        return open_arrays(spec, options)
    from klcli.sources.loading import load_model

    return load_model(spec, options)
