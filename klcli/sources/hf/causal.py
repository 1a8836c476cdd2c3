"""A Hugging Face causal language model: row i of a window predicts token i + 1."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from klcli.choices import Task
from klcli.errors import SourceError
from klcli.sources.hf.model import ModelSource
from klcli.sources.hf.proof import largest_kl
from klcli.text.windows import Window


class CausalSource(ModelSource):
    """A causal model that predicts the next token at every position of a window."""

    task: Task = "causal"

    def _sequences(self, batch: Sequence[Window]) -> tuple[Tensor, Tensor]:
        ids = np.stack([window.inputs for window in batch])
        places = np.concatenate([window.rows + i * ids.shape[1] for i, window in enumerate(batch)])
        return torch.from_numpy(ids).long(), torch.from_numpy(places)

    def _hidden(self, ids: Tensor, places: Tensor) -> Tensor:
        """What the output head is given at some places: (rows, d).

        The head itself is handed one position only, so that the model's own product costs nothing.
        """
        captured: list[Tensor] = []

        def keep(states: Tensor) -> Tensor:
            captured.append(states)
            return states[:, -1:]

        with self._place.watch(keep):
            self._model(input_ids=ids, use_cache=False)
        if len(captured) != 1 or captured[0].shape[:2] != ids.shape:
            raise ValueError("the output head is not applied once to every position")
        return captured[0].flatten(0, 1)[places.to(captured[0].device)]

    def _all_logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        return logits

    def _check_task(self, ids: Tensor, whole: Tensor, bound: float) -> None:
        other_end = ids.clone()
        other_end[:, -1] = (ids[:, -1] + 1) % int(ids.max() + 1)
        if largest_kl(whole[:, :-1], self._all_logits(other_end)[:, :-1]) > bound:
            raise SourceError(
                f"{self.name} is not a causal model: a token changes what it predicts before it; "
                "if it fills in masked tokens, give --task masked"
            )
