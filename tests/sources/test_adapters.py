"""Adapters run as peft merges them, or are refused in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from klcli import compare, layers, perplexity, record
from klcli.errors import SourceError
from klcli.sources.hf import adapter_files, loading
from klcli.sources.hf.quiet import quiet_transformers
from klcli.sources.options import LoadOptions
from tests.running import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # of peft, which are not ours to mend

CONFIGS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False),
    "dora": peft.LoraConfig(
        r=4, use_dora=True, target_modules=["up_proj"], init_lora_weights=False
    ),
    "ia3": peft.IA3Config(
        target_modules=["v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        init_ia3_weights=False,
    ),
    "untrained": peft.LoraConfig(r=4, target_modules=["q_proj"]),
}
LIMIT = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    """A small llama."""
    folder = tmp_path_factory.mktemp("adapters") / "base"
    return _saved(_llama(), folder, fixtures)


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=112, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _saved(model: Any, folder: Path, fixtures: Path) -> Path:
    with quiet_transformers():
        model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(fixtures / "models" / "reference" / name, folder)
    return folder


@pytest.fixture
def make(base: Path, fixtures: Path) -> Any:
    def made(kind: str) -> tuple[Path, Path]:
        """The folder of an adapter, and that of the base that it is merged into."""
        adapter, merged = base.parent / kind, base.parent / f"{kind}-merged"
        if not adapter.exists():
            with quiet_transformers():
                model = LlamaForCausalLM.from_pretrained(base)
            torch.manual_seed(1)
            wrapped = peft.get_peft_model(model, CONFIGS[kind])
            wrapped.save_pretrained(adapter)
            _saved(wrapped.merge_and_unload(), merged, fixtures)
        return adapter, merged

    return made


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_an_adapter_predicts_what_it_does_when_it_is_merged(
    kind: str, make: Any, base: Path, corpus: Path, tmp_path: Path
) -> None:
    adapter, merged = make(kind)
    beside = compare(base, base, corpus, candidate_adapter=adapter, limit=LIMIT)
    assert (beside.metrics["kl"]["mean"] or 0) > 1e-6
    assert beside.models["candidate"]["adapter"] == str(adapter)
    alone = compare(adapter, merged, corpus, limit=LIMIT)
    assert abs(alone.metrics["kl"]["max"] or 0) < 1e-9
    record(adapter, corpus, tmp_path / "recording", limit=LIMIT)
    recorded = compare(base, tmp_path / "recording", limit=LIMIT)
    assert recorded.metrics["kl"]["mean"] == pytest.approx(beside.metrics["kl"]["mean"], rel=1e-6)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_an_adapter_parts_from_its_base_and_not_from_what_it_is_merged_into(
    kind: str, make: Any, base: Path, corpus: Path
) -> None:
    adapter, merged = make(kind)
    assert layers(base, adapter, corpus, limit=LIMIT).first_apart == "block 0"
    assert layers(adapter, merged, corpus, limit=LIMIT).first_apart is None


def test_an_adapter_without_an_effect_is_told(make: Any, base: Path, corpus: Path) -> None:
    adapter, _ = make("untrained")
    report = compare(base, adapter, corpus, limit=LIMIT)
    assert report.metrics["kl"]["max"] == 0
    assert "adapter_without_effect" in [warning.code for warning in report.warnings]


def test_an_adapter_of_another_base_is_refused(
    make: Any, reference: Path, corpus: Path, tmp_path: Path, fixtures: Path
) -> None:
    adapter, _ = make("lora")
    with pytest.raises(SourceError, match=r"does not fit .*reference: Target modules"):
        perplexity(reference, corpus, adapter=adapter)
    deeper = LlamaForCausalLM(LlamaConfig(**{**_llama().config.to_dict(), "num_hidden_layers": 3}))
    folder = _saved(deeper, tmp_path / "deeper", fixtures)
    with pytest.raises(SourceError, match=r"of the weights it lacks 2, first .*layers\.2"):
        perplexity(folder, corpus, adapter=adapter)


def test_what_is_no_adapter_is_refused(make: Any, base: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"is not an adapter: it has no adapter_config\.json"):
        perplexity(base, corpus, adapter=tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(SourceError, match="does not name a base model"):
        perplexity(tmp_path, corpus)


def test_without_peft_it_is_said_what_to_install(
    make: Any, base: Path, corpus: Path, klcli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = make("lora")
    monkeypatch.setattr(adapter_files, "find_spec", lambda _: None)
    done = klcli("compare", base, adapter, corpus)
    assert done.code == 1
    assert "pip install 'klcli[peft]'" in done.err


def test_a_base_and_its_adapter_have_their_weights_in_memory_once(
    make: Any, base: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, merged = make("lora")
    expected = [
        compare(merged, other, corpus, limit=LIMIT).metrics["kl"]["mean"]
        for other in (base, adapter)
    ]
    loads: list[str] = []
    load_weights = loading._load_weights

    def counted(spec: str, *rest: Any) -> Any:
        loads.append(spec)
        return load_weights(spec, *rest)

    monkeypatch.setattr(loading, "_load_weights", counted)
    there = compare(base, adapter, corpus, limit=LIMIT)
    back = compare(adapter, base, corpus, limit=LIMIT)
    assert loads == [str(base), str(adapter)]
    monkeypatch.undo()
    assert there.metrics["kl"]["mean"] == pytest.approx(
        compare(base, merged, corpus, limit=LIMIT).metrics["kl"]["mean"], rel=1e-5
    )
    assert back.metrics["kl"]["mean"] == pytest.approx(expected[0], rel=1e-5)
    assert expected[1] == pytest.approx(0, abs=1e-9)


def test_models_that_share_a_base_do_not_share_an_adapter(make: Any, base: Path) -> None:
    adapter, _ = make("lora")
    one = loading.load_model(str(base), LoadOptions())
    other = loading.load_model(str(adapter), LoadOptions(), one)
    pointers = [{p.data_ptr() for p in s._model.parameters()} for s in (one, other)]
    assert pointers[0] < pointers[1]
    assert one.digest() == loading.load_model(str(base), LoadOptions()).digest()
    assert other.digest() == loading.load_model(str(adapter), LoadOptions()).digest()
