"""Keep transformers, and the libraries that it calls, off the terminal while a model is loaded."""

import contextlib
import importlib
import io
import logging
from collections.abc import Iterator
from importlib.util import find_spec

import transformers

from klcli.sources.hf.hub import no_bars


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or advice of transformers and its helpers on our streams while it loads."""
    own = transformers.utils.logging
    verbosity, bars = own.get_verbosity(), own.is_progress_bar_enabled()
    own.set_verbosity_error()
    own.disable_progress_bar()
    try:
        # What a library prints would stand in the midst of a report.
        with _only_errors(), no_bars(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        own.set_verbosity(verbosity)
        if bars:
            own.enable_progress_bar()


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
    """What libraries log is advice to developers, also while they are imported."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    others = importlib.import_module("loguru").logger if find_spec("loguru") else None
    if others:
        others.disable("compressed_tensors")
    try:
        yield
    finally:
        logging.disable(before)
        if others:
            others.enable("compressed_tensors")
