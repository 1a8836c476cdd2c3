"""What a model says to prompts: transformers' own generation, batched, nothing of it by chance."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from klcli.errors import SourceError, gist, is_out_of_memory
from klcli.sources.hf.model import ModelSource
from klcli.sources.hf.quiet import quiet_transformers
from klcli.text.vocabulary import IntArray


class Generator:
    """A causal model that continues prompts.

    What the checkpoint says of generation is not followed, such as a temperature or a penalty for
    repetitions: only which tokens end an answer.

    Args:
        source: the model.
        most: tokens of an answer, at the most.
        temperature: 0 takes the most probable token each time.

    Raises:
        SourceError: it is not a causal model.
    """

    def __init__(self, source: ModelSource, *, most: int, temperature: float) -> None:
        if source.task != "causal":
            raise SourceError(
                f"{source.name} is a masked model, which does not go on with a text: give a causal "
                "one"
            )
        self._source, self._model = source, source.model
        self.end_ids = _end_ids(source)
        pad = next(iter(self.end_ids), 0)
        self._pad = pad
        self._config = GenerationConfig(
            max_new_tokens=most,
            do_sample=temperature > 0,
            temperature=temperature if temperature > 0 else 1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=sorted(self.end_ids) or None,
            pad_token_id=pad,
            bos_token_id=source.vocabulary.bos_id,
        )

    def answers(self, prompts: Sequence[IntArray], seed: int) -> Iterator[list[int]]:
        """The ids of an answer to each prompt, with the token that ends it.

        ``seed`` is that of chance, where there is any.

        Raises:
            SourceError: the model fails.
        """
        ids, mask = self._padded(prompts)
        own = self._model.generation_config
        torch.manual_seed(seed)
        try:
            # Whatever is not set would be taken from there.
            self._model.generation_config = GenerationConfig()
            with torch.inference_mode(), quiet_transformers():
                found = self._model.generate(
                    input_ids=ids, attention_mask=mask, generation_config=self._config
                )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise SourceError(f"{self._source.name} cannot generate: {gist(error)}") from error
        finally:
            self._model.generation_config = own
        for row in found[:, ids.shape[1] :].tolist():
            yield self._to_its_end(row)

    def _padded(self, prompts: Sequence[IntArray]) -> tuple[Tensor, Tensor]:
        """Prompts as one tensor, padded on the left, and which of it is theirs."""
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype("int64"))
            mask[row, longest - len(prompt) :] = 1
        return ids.to(self._source.device), mask.to(self._source.device)

    def _to_its_end(self, row: list[int]) -> list[int]:
        """An answer without what stands behind the token that ends it."""
        for place, token_id in enumerate(row):
            if token_id in self.end_ids:
                return row[: place + 1]
        return row


def _end_ids(source: ModelSource) -> frozenset[int]:
    """The tokens that end an answer: those of the checkpoint, and the tokenizer's."""
    named: Any = getattr(source.model.generation_config, "eos_token_id", None)
    several = named if isinstance(named, list | tuple) else [named]
    return frozenset(int(one) for one in (*several, source.vocabulary.eos_id) if one is not None)
