"""klcli tells whether two language models still predict the same thing.

>>> from klcli import compare, perplexity
>>> report = compare("model-a", "model-b", "corpus.txt")    # doctest: +SKIP
>>> report.metrics["kl"]["mean"]                            # doctest: +SKIP

``compare``, ``perplexity`` and ``record`` take the options of the command of the same name as
keyword arguments; the first two return a ``Report``. ``answer`` keeps what a model says, ``rank``
puts many candidates in order, and
``layers`` says where in the network two models part. Importing klcli loads neither torch nor
transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klcli.api import answer, compare, layers, merge, perplexity, rank, record, report
    from klcli.errors import KlcliError
    from klcli.judge.layers import Layers
    from klcli.judge.ranking import Ranking
    from klcli.render.notebook import Report

__version__ = "0.1.0"

__all__ = [
    "KlcliError",
    "Layers",
    "Ranking",
    "Report",
    "__version__",
    "answer",
    "compare",
    "layers",
    "merge",
    "perplexity",
    "rank",
    "record",
    "report",
]

_HOMES = {
    "compare": "klcli.api",
    "perplexity": "klcli.api",
    "layers": "klcli.api",
    "record": "klcli.api",
    "answer": "klcli.api",
    "report": "klcli.api",
    "merge": "klcli.api",
    "rank": "klcli.api",
    "Ranking": "klcli.judge.ranking",
    "KlcliError": "klcli.errors",
    "Layers": "klcli.judge.layers",
    "Report": "klcli.render.notebook",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'klcli' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
