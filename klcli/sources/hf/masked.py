"""A Hugging Face masked language model: it predicts the tokens that are hidden from it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from klcli.choices import Task
from klcli.sources.hf.model import ModelSource
from klcli.sources.hf.proof import largest_kl
from klcli.text.masking import masked_rows
from klcli.text.windows import Window


class MaskedSource(ModelSource):
    """A masked model that predicts every scored token of a window where it is masked.

    The body reads one sequence for each masked copy of a window; behind the body everything runs on
    the masked positions alone.
    """

    task: Task = "masked"

    def _sequences(self, batch: Sequence[Window]) -> tuple[Tensor, Tensor]:
        ids, hidden = masked_rows(tuple(batch))
        return torch.from_numpy(ids).long(), torch.from_numpy(hidden)

    def _logits(self, ids: Tensor, places: Tensor) -> Tensor:
        if not self._gathers:
            return super()._logits(ids, places)
        with self._body_gives(places):
            logits: Tensor = self._model(input_ids=ids).logits
        return logits.flatten(0, 1)

    def _hidden(self, ids: Tensor, places: Tensor) -> Tensor:
        captured: list[Tensor] = []

        def keep(states: Tensor) -> Tensor:
            captured.append(states)
            return states[:, :1]

        with self._body_gives(places), self._place.watch(keep):
            self._model(input_ids=ids)
        if len(captured) != 1 or captured[0].shape[:-1].numel() != len(places):
            raise ValueError("the output head is not applied once to every position")
        return captured[0].flatten(0, -2)

    def _body_gives(self, places: Tensor) -> Any:
        """While this is open the body hands on what it has at some places only: (1, rows, d)."""

        def gather(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
            first = "last_hidden_state" if hasattr(output, "last_hidden_state") else 0
            states = output[first]
            output[first] = states.flatten(0, 1)[places.to(states.device)][None]
            return output

        return self._model.base_model.register_forward_hook(gather)

    def _check_task(self, ids: Tensor, whole: Tensor, bound: float) -> None:
        """Find out whether what stands behind the body gives the same for some positions alone."""
        self._gathers = True
        places = torch.arange(ids.numel(), device=ids.device).flip(0)[::2]
        try:
            apart = self._logits(ids, places)
        except (AttributeError, ValueError, TypeError, IndexError, RuntimeError):
            self._gathers = False
        else:
            self._gathers = largest_kl(whole.flatten(0, 1)[places], apart) <= bound
