"""What a look at its files tells of a source, before torch and transformers are loaded."""

from pathlib import Path

from klcli.errors import SourceError
from klcli.sources.given import Spec
from klcli.sources.kinds import check_there, kind_of
from klcli.sources.llamacpp.place import check_gguf
from klcli.sources.options import LoadOptions


def check_source(spec: Spec, options: LoadOptions) -> None:
    """Find out whether there is something to open. What a caller has in memory is there.

    Raises:
        SourceError: there is nothing of that name, files are missing or damaged, or what the
            options name is not there.
    """
    if not isinstance(spec, str):
        return
    kind = kind_of(spec)
    if kind == "model":
        check_model(spec, options)
    elif kind == "recording":
        _check_recording(spec)
    else:
        check_there(spec)
        _check_beside(options)


def check_model(spec: str, options: LoadOptions) -> None:
    """Find out whether there is a model to load: a folder, a ``.gguf`` file, or one of the Hub.

    Raises:
        SourceError: there is none, or files of it, or of its adapter, are missing or damaged.
    """
    if options.engine == "llama.cpp":
        check_gguf(spec)
        return
    from klcli.sources.hf.checkpoint import loading, locate
    from klcli.sources.hf.hub import check_on_hub

    checkpoint = locate(spec, options)
    if Path(checkpoint.place).is_dir():
        checkpoint.weight_files()
        return
    with loading(spec):
        check_on_hub(checkpoint.place, options.revision)


def _check_recording(spec: str) -> None:
    from klcli.sources.recording.format import read_complete

    read_complete(Path(spec))


def _check_beside(options: LoadOptions) -> None:
    """What is read with a logit file: its token ids, and a tokenizer."""
    if options.token_ids is not None and not Path(options.token_ids).is_file():
        raise SourceError(f"no token ids at {options.token_ids!r}: check the path")
    if options.tokenizer is None:
        return
    if kind_of(options.tokenizer) == "recording":
        _check_recording(options.tokenizer)
    else:
        check_model(options.tokenizer, options)
