"""The windows that saved logits bring: their tokens, and which of their rows are scored."""

import numpy as np

from klcli.errors import SourceError
from klcli.text.vocabulary import IntArray
from klcli.text.windows import NO_TARGET, TokenizedDocument, Window, WindowTable


def check_tokens(spec: str, tokens: IntArray, shape: tuple[int, ...]) -> IntArray:
    """The tokens as (windows, rows) or (windows, rows + 1), or an error with both shapes."""
    if tokens.dtype.kind not in "iu":
        raise SourceError(f"{spec}: its tokens are {tokens.dtype}, not integers")
    *lead, rows, width = shape
    if list(tokens.shape) not in ([*lead, rows], [*lead, rows + 1]):
        raise SourceError(
            f"{spec}: tokens of shape {tokens.shape} do not fit values of shape "
            f"{shape}; each window needs {rows} or {rows + 1} tokens"
        )
    if tokens.min() < 0 or tokens.max() >= width:
        raise SourceError(
            f"{spec}: token ids from {tokens.min()} to {tokens.max()} do not fit a vocabulary of "
            f"{width}"
        )
    return tokens.reshape(-1, tokens.shape[-1]).astype(np.int64)


def windows_of(
    spec: str, tokens: IntArray | None, shape: tuple[int, ...], score_from: IntArray
) -> WindowTable:
    """A window for each of the first axis; they are one document where each goes on with the last.

    ``tokens`` (windows, rows or rows + 1) may be None; ``shape`` is that of the logits.
    """
    rows = shape[-2]
    if tokens is None:
        tokens = np.full((len(score_from), rows), NO_TARGET, dtype=np.int64)
    with_targets = tokens if tokens.shape[1] > rows else _with_unknown_target(tokens)
    chained = tokens.shape[1] > rows and bool((tokens[:-1, -1] == tokens[1:, 0]).all())
    documents = [np.concatenate([tokens[0], *tokens[1:, 1:]])] if chained else list(tokens)
    windows = [
        Window(
            number=number,
            document=0 if chained else number,
            inputs=tokens[number, :rows],
            score_from=int(first),
            targets=with_targets[number, first + 1 :],
            position=int(first) + 1 + (number * rows if chained else 0),
        )
        for number, first in enumerate(score_from)
    ]
    names = [spec] if chained else [f"{spec}#{number}" for number in range(len(documents))]
    return WindowTable(
        documents=tuple(
            TokenizedDocument(corpus=0, name=name, ids=ids, encoding=None)
            for name, ids in zip(names, documents, strict=True)
        ),
        windows=tuple(windows),
    )


def _with_unknown_target(tokens: IntArray) -> IntArray:
    unknown = np.full((tokens.shape[0], 1), NO_TARGET, dtype=np.int64)
    return np.concatenate([tokens, unknown], axis=1)
