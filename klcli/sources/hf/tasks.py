"""Which source reads the models of which task."""

from collections.abc import Mapping

from klcli.choices import Task
from klcli.sources.hf.causal import CausalSource
from klcli.sources.hf.masked import MaskedSource
from klcli.sources.hf.model import ModelSource

SOURCES: Mapping[Task, type[ModelSource]] = {"causal": CausalSource, "masked": MaskedSource}
