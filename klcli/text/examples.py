"""What a data set holds: texts, prompts with their completions, conversations, answers.

A text and a prompt with its completion are documents as they stand. A conversation becomes one by a
chat template, and an answer by the vocabulary that its tokens are of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from klcli.errors import Notice
from klcli.text.corpus import Document
from klcli.text.templates import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages, in order.

    Attributes:
        tools: descriptions of functions that the template shows to the model.
        given: how many messages from the first on are a prompt, of which nothing is scored.
        group: what it has in the field that documents are grouped by.
    """

    name: str
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    given: int = 0
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said to a prompt, token by token, as ``klcli answer`` writes it.

    Attributes:
        answer: its text.
        vocabulary: the fingerprint of the vocabulary that the ids are of.
        is_greedy: whether each token was the most probable one.
    """

    name: str
    prompt_ids: npt.NDArray[np.int32]
    answer_ids: npt.NDArray[np.int32]
    answer: str
    vocabulary: str
    is_greedy: bool
    group: str | None = None


Example = Document | Conversation | Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The examples of one file or folder, under the name it was given.

    Attributes:
        sha256: of its text as read.
        notices: which fields were read, and what else a reader should know.
        group_by: the field that its examples are grouped by.
    """

    name: str
    sha256: str
    examples: tuple[Example, ...]
    notices: tuple[Notice, ...] = ()
    group_by: str | None = None
