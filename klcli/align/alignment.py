"""What comes of aligning: the tokens, windows and ids that the sources of a run share."""

from dataclasses import dataclass

from klcli.errors import Notice
from klcli.text.vocabulary import TokenNames
from klcli.text.windows import WindowTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """What is scored, settled. Ids from ``vocabulary_size`` on stand for no token."""

    table: WindowTable
    names: TokenNames
    vocabulary_size: int
    notices: tuple[Notice, ...]
