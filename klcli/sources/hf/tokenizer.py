"""The tokenizer of a Hugging Face model."""

from pathlib import Path
from typing import Any

import transformers

from klcli.errors import SourceError
from klcli.sources.hf.checkpoint import Checkpoint, loading, locate
from klcli.sources.hf.gguf_file import gguf_file
from klcli.sources.hf.intact import read_object
from klcli.sources.hf.jinja import render
from klcli.sources.hf.quiet import quiet_transformers
from klcli.sources.options import LoadOptions
from klcli.sources.slow_tokenizer import SlowTokenizer
from klcli.text.templates import DEFAULT, ChatTemplate
from klcli.text.vocabulary import Vocabulary


def vocabulary_of(tokenizer: Any, name: str) -> Vocabulary:
    """The vocabulary of a Hugging Face tokenizer.

    Raises:
        SourceError: it has no tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None and not hasattr(tokenizer, "get_vocab"):
        raise SourceError(f"{name}: its tokenizer ({type(tokenizer).__name__}) lists no tokens")
    return Vocabulary(
        backend or SlowTokenizer.of(tokenizer),
        bos_id=tokenizer.bos_token_id,
        eos_id=tokenizer.eos_token_id,
        mask_id=tokenizer.mask_token_id,
        unknown_id=tokenizer.unk_token_id,
        chat=_chat_template(tokenizer, name),
    )


def _chat_template(tokenizer: Any, name: str) -> ChatTemplate | None:
    """The chat templates of a tokenizer, None where it has none."""
    found = getattr(tokenizer, "chat_template", None)
    if not found:
        return None
    return ChatTemplate(
        name=name,
        sources=dict(found) if isinstance(found, dict) else {DEFAULT: str(found)},
        special_tokens=_special_tokens(tokenizer),
        jinja=render,
    )


def _special_tokens(tokenizer: Any) -> dict[str, str]:
    """The special tokens that have a name, as strings; a list of more has none that is read."""
    found = tokenizer.special_tokens_map.items()
    return {name: str(token) for name, token in found if not isinstance(token, list | tuple)}


def read_tokenizer(spec: str, checkpoint: Checkpoint) -> Vocabulary:
    """The tokenizer of a checkpoint, whose GGUF file is open if it is one.

    Raises:
        SourceError: there is none.
    """
    folder = Path(checkpoint.tokenizer)
    try:
        found = transformers.AutoTokenizer.from_pretrained(
            checkpoint.tokenizer, **checkpoint.arguments
        )
    except ValueError:  # transformers does not know which class to make, or a file is damaged
        _check_files(spec, checkpoint, {"tokenizer.model"})
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                read_object(folder / name)
        raise
    # Of some classes it makes an empty one where there are no files.
    _check_files(spec, checkpoint, set(found.vocab_files_names.values()))
    return vocabulary_of(found, spec)


def _check_files(spec: str, checkpoint: Checkpoint, names: set[str]) -> None:
    folder, wanted = Path(checkpoint.tokenizer), sorted({"tokenizer.json", *names})
    if checkpoint.is_gguf or not folder.is_dir():  # a model of the Hub has what it needs
        return
    if not any((folder / name).exists() for name in wanted):
        raise SourceError(
            f"{spec} has no tokenizer (such as {' or '.join(wanted)}): copy the files of the "
            "tokenizer from the model that it was made of"
        )


def load_tokenizer(spec: str, options: LoadOptions) -> Vocabulary:
    """Only the tokenizer of a model: a folder, a ``.gguf`` file, or a Hub id.

    Raises:
        SourceError: there is none.
    """
    checkpoint = locate(spec, options)
    with quiet_transformers(), loading(spec), gguf_file(spec, checkpoint):
        return read_tokenizer(spec, checkpoint)
