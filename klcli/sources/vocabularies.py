"""The tokenizer that a user names for a logit file, which has none."""

from pathlib import Path

from klcli.sources.kinds import kind_of
from klcli.sources.options import LoadOptions
from klcli.text.vocabulary import Vocabulary


def load_vocabulary(options: LoadOptions) -> Vocabulary | None:
    """The tokenizer of ``options.tokenizer``, a model or a recording; None where none is named.

    Raises:
        SourceError: there is none of that name.
    """
    if options.tokenizer is None:
        return None
    if kind_of(options.tokenizer) == "recording":
        from klcli.sources.recording.format import read_vocabulary

        return read_vocabulary(Path(options.tokenizer))
    from klcli.sources.hf.tokenizer import load_tokenizer  # which brings transformers

    return load_tokenizer(options.tokenizer, options)
