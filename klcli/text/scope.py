"""What is read of a data set, and which tokens of it are scored, as the options say it."""

from dataclasses import dataclass

from klcli.choices import Bos, DocumentSplit, Pll, Score, SpecialTokens, at_least, check_fields
from klcli.errors import UsageError
from klcli.text.protocols import DEFAULT_PROTOCOL, PRESETS, ProtocolName


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Which fields of a data set's lines are read; None for those that are found by themselves.

    Raises:
        UsageError: they contradict each other.
    """

    text_field: str | None = None
    prompt_field: str | None = None
    completion_field: str | None = None
    group_by: str | None = None

    def __post_init__(self) -> None:
        if self.text_field is not None and (self.prompt_field or self.completion_field):
            raise UsageError(
                "--text-field names a whole text, and --prompt-field and --completion-field its "
                "parts: leave out one or the other"
            )
        if (self.prompt_field is None) != (self.completion_field is None):
            raise UsageError("--prompt-field and --completion-field go together: give both")


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
    score: Score = "assistant"
    score_reasoning: bool = True
    chat_template: str | None = None
    max_tokens: int | None = at_least(1)
    seed: int = at_least(0, 0)
    pll: Pll | None = None
    mask_every: int | None = at_least(1)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def split(self) -> DocumentSplit:
        """What one document is."""
        return self.documents or PRESETS[self.protocol or DEFAULT_PROTOCOL].documents
