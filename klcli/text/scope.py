"""Which tokens a user wants scored, as the options say it."""

from dataclasses import dataclass

from klcli.choices import Bos, DocumentSplit, Pll, SpecialTokens, at_least, check_fields
from klcli.text.protocols import DEFAULT_PROTOCOL, PRESETS, ProtocolName


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The options of the same names; None is the default of the protocol.

    Raises:
        UsageError: a value is not one of the choices, or too small.
    """

    protocol: ProtocolName | None = None
    context: int | None = at_least(1)
    stride: int | None = at_least(1)
    score_from: int | None = at_least(0)
    bos: Bos = "auto"
    special_tokens: SpecialTokens | None = None
    documents: DocumentSplit | None = None
    limit: int | None = at_least(1)
    pll: Pll | None = None
    mask_every: int | None = at_least(1)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def split(self) -> DocumentSplit:
        """What one document is."""
        return self.documents or PRESETS[self.protocol or DEFAULT_PROTOCOL].documents
