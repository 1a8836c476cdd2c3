"""Chat templates, run by transformers in its sandbox: they come from strangers."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from klcli.errors import gist
from klcli.text.templates import Message, Spans, TemplateFailed


def render(
    source: str,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    special_tokens: Mapping[str, str],
    *,
    asks: bool,
    marked: bool,
) -> tuple[str, Spans]:
    """The text of messages: see ``Jinja``.

    Raises:
        TemplateFailed: the template refuses them, is not one, or does what the sandbox forbids.
    """
    try:
        texts, spans = render_jinja_template(
            [list(messages)],
            tools=list(tools) or None,
            chat_template=source,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=asks,
            **special_tokens,
        )
    except Exception as error:  # whatever a stranger's template raises is its failure
        raise TemplateFailed(gist(error)) from error
    return texts[0], [(start, stop) for start, stop in spans[0]] if marked else []
