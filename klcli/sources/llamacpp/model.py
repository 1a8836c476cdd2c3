"""A GGUF file that llama.cpp runs, as a source."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from klcli.errors import MismatchError, SourceError
from klcli.sources.hf.tokenizer import load_tokenizer
from klcli.sources.llamacpp.binding import Context, LoadedModel, version
from klcli.sources.llamacpp.place import check_gguf, parts_of
from klcli.sources.llamacpp.rows import LlamaRows
from klcli.sources.logits_only import LogitsOnly, unproved
from klcli.sources.options import LoadOptions
from klcli.sources.rows import block_rows
from klcli.storage.files import check_state, state_of
from klcli.text.vocabulary import Vocabulary
from klcli.text.windows import Window

DEFAULT = LoadOptions()
BLANK = "▁".encode()
"""How SentencePiece writes a blank."""
SHOWN = 3
"""Tokens that a message names."""


class LlamaCppSource(LogitsOnly):
    """A causal model in a GGUF file, run by llama.cpp with the kernels that it serves with.

    Ids are made by klcli's tokenizer of the same file and handed over as ids: special tokens and
    BOS too. Logits are held a block of rows at a time.
    """

    def __init__(self, name: str, vocabulary: Vocabulary, options: LoadOptions) -> None:
        self.name, self.vocabulary = name, vocabulary
        self._files = {path: state_of(path) for path in parts_of(Path(name))}
        self._model = LoadedModel(Path(name), options)
        self._threads = options.threads or torch.get_num_threads()
        self._context: Context | None = None
        self._length, self._digest = 0, ""
        self.width, self.longest = self._model.width, self._model.longest
        self.proof = unproved(self.width, torch.float32, "llama.cpp gives logits")
        self._check_tokens()
        self.provenance: dict[str, Any] = {
            "source": name,
            "kind": self.task,
            "engine": "llama.cpp",
            **version(),
            "dtype": _label(options),
            "kv_cache_type": options.kv_cache_type,
            "flash_attention": options.flash_attention,
            "gpu_layers": options.gpu_layers,
            "threads": self._threads,
            "device": "llama.cpp" if self._model.has_gpu else "cpu",
            "architecture": self._model.description,
            "vocabulary_width": self.width,
            "tokenizer": vocabulary.fingerprint,
            "parameters": self._model.parameters,
            "bytes": self._model.bytes,
            "bits_per_weight": round(8 * self._model.bytes / self._model.parameters, 3),
        }

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[LlamaRows]:
        """The scored rows of each batch, window by window.

        Raises:
            SourceError: llama.cpp fails.
        """
        longest = max(len(window.inputs) for batch in batches for window in batch)
        size = block_rows(self.width, torch.float32.itemsize)
        self._make_room(longest, size)
        for batch in batches:
            yield LlamaRows(batch, self._room, size)

    def digest(self) -> str:
        """A sha256 of the files, worked out once."""
        if not self._digest:
            found = hashlib.sha256()
            for path in self._files:
                with path.open("rb") as file:
                    found.update(hashlib.file_digest(file, "sha256").digest())
            self._digest = found.hexdigest()
        return self._digest

    def check_unchanged(self) -> None:
        """Raise a SourceError where a file was written to: its weights are mapped from it."""
        for path, state in self._files.items():
            check_state(path, state)

    def _make_room(self, length: int, block: int) -> None:
        """Have a context for so many ids."""
        if self._context is not None and length <= self._length:
            return
        if self._context is not None:
            self._context.close()
        self._length = length
        self._context = self._model.context(length, block, self._threads)

    def _room(self) -> Context:
        assert self._context is not None
        return self._context

    def _check_tokens(self) -> None:
        """Hold the tokens of the file against those that ids are made with.

        Raises:
            MismatchError: an id stands for another token in the file.
        """
        ours = self.vocabulary.ordinary_tokens()
        wrong = [i for i, token in ours.items() if not _is_same(self._model.token(i), token)]
        if not wrong:
            return
        shown = ", ".join(
            f"id {i} is {ours[i]!r} and there {self._model.token(i).decode(errors='replace')!r}"
            for i in wrong[:SHOWN]
        )
        raise MismatchError(
            f"the tokenizer of {self.name} differs from what llama.cpp reads in it: {len(wrong)} "
            f"of {len(ours)} ids, {shown}; give the right one with --tokenizer"
        )


def _is_same(theirs: bytes, ours: str) -> bool:
    """Whether two ways to write a token mean the same: some write blanks as they are."""
    return theirs.replace(BLANK, b" ") == ours.encode().replace(BLANK, b" ")


def _label(options: LoadOptions) -> str:
    """What tells one side from the other where both are the same file."""
    parts = ["llama.cpp"]
    if options.kv_cache_type != DEFAULT.kv_cache_type:
        parts.append(f"{options.kv_cache_type} cache")
    if options.flash_attention != DEFAULT.flash_attention:
        parts.append(f"flash attention {options.flash_attention}")
    return ", ".join(parts)


def open_gguf(spec: str, options: LoadOptions) -> LlamaCppSource:
    """Open a GGUF file with llama.cpp.

    Raises:
        SourceError: it is not a GGUF file, the binding is missing, or llama.cpp refuses it.
        MismatchError: its tokens are not those of the tokenizer.
    """
    check_gguf(spec)
    return LlamaCppSource(spec, _tokenizer_for(spec, options), options)


def _tokenizer_for(spec: str, options: LoadOptions) -> Vocabulary:
    """The tokenizer that was named, or that of the file.

    Raises:
        SourceError: transformers cannot make one of the file.
    """
    if options.tokenizer is not None:
        return load_tokenizer(options.tokenizer, options)
    try:
        return load_tokenizer(spec, options)
    except SourceError as error:
        raise SourceError(
            f"{error}; llama.cpp may run it all the same: name a model with the same tokenizer "
            "with --tokenizer"
        ) from error
