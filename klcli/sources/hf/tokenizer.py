"""The tokenizer of a Hugging Face model."""

from typing import Any

import transformers

from klcli.errors import SourceError
from klcli.sources.hf.checkpoint import loading, locate, quiet_transformers
from klcli.sources.hf.gguf_file import gguf_file
from klcli.sources.options import LoadOptions
from klcli.text.vocabulary import Vocabulary


def vocabulary_of(tokenizer: Any, name: str) -> Vocabulary:
    """The vocabulary of a Hugging Face tokenizer.

    Raises:
        SourceError: it is not a fast tokenizer, which alone knows where its tokens lie in the text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise SourceError(f"{name}: its tokenizer has no fast form (tokenizer.json); convert it")
    return Vocabulary(
        backend,
        bos_id=tokenizer.bos_token_id,
        eos_id=tokenizer.eos_token_id,
        mask_id=tokenizer.mask_token_id,
        unknown_id=tokenizer.unk_token_id,
    )


def load_tokenizer(spec: str, options: LoadOptions) -> Vocabulary:
    """Only the tokenizer of a model: a folder, a ``.gguf`` file, or a Hub id.

    Raises:
        SourceError: there is none.
    """
    checkpoint = locate(spec, options)
    with quiet_transformers(), loading(spec), gguf_file(spec, checkpoint):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            checkpoint.place, **checkpoint.arguments
        )
    return vocabulary_of(tokenizer, spec)
