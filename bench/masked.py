"""Masked models: the whole loop against the bare encoder on the same masked rows."""

import random
from collections.abc import Iterator
from functools import partial

import torch
import transformers

from bench.timing import Figure, ratio
from klcli.align import align
from klcli.measure.evaluate import evaluate
from klcli.sources.hf.masked import MaskedSource
from klcli.sources.hf.tokenizer import vocabulary_of
from klcli.text.corpus import Document
from klcli.text.examples import Dataset
from klcli.text.masking import masked_rows
from klcli.text.scope import Scope
from klcli.text.windows import WindowTable, plan_batches
from tests.sources import masked_models

SENTENCES = 200
GOALS = {torch.float32: 1.05, torch.bfloat16: 1.10}


def figures(scale: float = 1.0) -> Iterator[Figure]:
    """A random model of BERT-base's shape (V = 30,522) on sentences of mixed length."""
    for dtype, goal in GOALS.items():
        source = _source(dtype)
        table = align([source], [_sentences(max(1, round(SENTENCES * scale)))], Scope()).table
        name = str(dtype).removeprefix("torch.")
        yield ratio(
            f"masked perplexity, BERT-base shape, {table.tokens} rows, {name} ÷ bare encoder",
            partial(_loop, source, table),
            partial(_bare, source, table),
            goal=goal,
        )


def _loop(source: MaskedSource, table: WindowTable) -> None:
    evaluate(
        table,
        [source],
        batch_tokens=source.batch_tokens,
        vocabulary_size=source.width,
    )


@torch.inference_mode()
def _bare(source: MaskedSource, table: WindowTable) -> None:
    """The encoder on the same rows, in the same forward passes."""
    for batch in plan_batches(table.windows, source.batch_tokens):
        ids = torch.from_numpy(masked_rows(tuple(table.windows[i] for i in batch)).ids).long()
        step = max(1, source.batch_tokens // ids.shape[1])
        for first in range(0, len(ids), step):
            source._model.base_model(input_ids=ids[first : first + step])


def _source(dtype: torch.dtype) -> MaskedSource:
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig()).to(dtype).eval()
    _, tokenizer = masked_models.tiny_masked("bert")
    return MaskedSource("BERT-base shape", model, vocabulary_of(tokenizer, "bert"))


def _sentences(count: int) -> Dataset:
    words = masked_models.TEXT.split()
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words, k=rng.randint(3, 20))) for _ in range(count)]
    documents = tuple(Document(name=f"{i}", content=text.encode()) for i, text in enumerate(texts))
    return Dataset(name="sentences", sha256="", examples=documents)
