"""What a vocabulary needs of a tokenizer: the fast ones have it, and slow ones are made to."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Backend(Protocol):
    """A tokenizer, as far as klcli calls it; it is that of ``tokenizers.Tokenizer``."""

    encode_special_tokens: bool

    def no_truncation(self) -> None: ...

    def no_padding(self) -> None: ...

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]: ...

    def get_added_tokens_decoder(self) -> Mapping[int, Any]: ...

    def encode(self, text: Any, /, *, add_special_tokens: bool = True) -> Any: ...

    def encode_batch(self, texts: Any, /, *, add_special_tokens: bool = True) -> Sequence[Any]: ...

    def to_str(self) -> str: ...
