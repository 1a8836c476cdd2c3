"""Tokenizers without a fast form: their tokens are found in the text, and recordings keep them."""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import klcli
from klcli.errors import SourceError
from klcli.sources.hf.quiet import quiet_transformers
from klcli.sources.hf.tokenizer import vocabulary_of
from klcli.sources.slow_tokenizer import read_backend
from klcli.text.vocabulary import Vocabulary
from tests.running import Run

RESIDUES = list("LAGVSERTIDPKQNFYMHWCXBUZO.-")
ESM = ["<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, "<null_1>", "<mask>"]
PROTEINS = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ\nGSHMLEDPV?KWTaaGG\n"


def save_esm(folder: Path, seed: int) -> str:
    """A tiny random ESM-2 with its vocabulary."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(ESM))
    config = transformers.EsmConfig(
        vocab_size=len(ESM), mask_token_id=ESM.index("<mask>"), pad_token_id=1, hidden_size=32,
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, token_dropout=True,
        max_position_embeddings=66, position_embedding_type="rotary",
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.EsmForMaskedLM(config)
    with torch.no_grad(), quiet_transformers():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
        model.save_pretrained(folder)
    transformers.EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def proteins(tmp_path: Path) -> Path:
    path = tmp_path / "proteins.txt"
    path.write_text(PROTEINS)
    return path


def prophetnet(folder: Path) -> Any:
    words = ["the", "cat", "##s", "sleep", ".", "-", "na", "##ive"]
    path = folder / "prophetnet.tokenizer"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[X_SEP]", "[MASK]", *words]))
    return transformers.ProphetNetTokenizer(str(path))


def ctrl(folder: Path) -> Any:
    merges = ["t h", "th e</w>", "c a", "t s</w>"]
    tokens = ["<unk>", "the", "ca@@", "ts", "th@@", *string.ascii_letters, "."]
    tokens += [f"{letter}@@" for letter in string.ascii_letters]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return transformers.CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def pieces(vocabulary: Vocabulary, text: str, **how: bool) -> list[tuple[str, str]]:
    """Every token as it is written, and the text that it covers."""
    found = vocabulary.encode(text, **how)
    content, starts = text.encode(), [0, *found.ends.tolist()]
    covers = [content[a:b].decode() for a, b in zip(starts, found.ends.tolist(), strict=False)]
    written = [str(vocabulary.string(i)) for i in found.ids.tolist()]
    return list(zip(written, covers, strict=True))


def test_every_residue_of_a_protein_is_a_token(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(ESM))
    vocabulary = vocabulary_of(transformers.EsmTokenizer(str(tmp_path / "vocab.txt")), "esm")
    assert pieces(vocabulary, "MKT\nGaaG") == [
        ("M", "M"), ("K", "K"), ("T", "T"), ("G", "\nG"), ("<unk>", "aa"), ("G", "G"),
    ]  # fmt: skip
    assert vocabulary.frame == ([0], [2])
    assert vocabulary.mask_id == ESM.index("<mask>")
    words = vocabulary.encode("MKT", find_words=True)
    assert words.word_ends is not None
    assert words.word_ends.tolist() == [1, 2, 3]


def test_a_special_string_in_a_text_is_text_unless_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(ESM))
    vocabulary = vocabulary_of(transformers.EsmTokenizer(str(tmp_path / "vocab.txt")), "esm")
    assert pieces(vocabulary, "M<mask>K") == [
        ("M", "M"), ("<unk>", "<"), ("<unk>", "mask>"), ("K", "K"),
    ]  # fmt: skip
    assert pieces(vocabulary, "M<mask>K", parse_special=True) == [
        ("M", "M"), ("<mask>", "<mask>"), ("K", "K"),
    ]  # fmt: skip


def test_pieces_of_words_are_located(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(prophetnet(tmp_path), "prophetnet")
    assert pieces(vocabulary, "The cats-\u2603x the na\u00efve.") == [
        ("the", "The"), ("cat", " cat"), ("##s", "s"), ("-", "-"), ("[UNK]", "\u2603x"),
        ("the", " the"), ("na", " na"), ("##ive", "\u00efve"), (".", "."),
    ]  # fmt: skip
    words = vocabulary.encode("The cats sleep", find_words=True)
    assert words.word_ends is not None
    assert words.word_ends.tolist() == [1, 3, 3, 4]


def test_byte_pairs_with_marks_are_located(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(ctrl(tmp_path), "ctrl")
    assert pieces(vocabulary, "the cats") == [("the", "the"), ("ca@@", " ca"), ("ts", "ts")]


@pytest.mark.parametrize("make", [prophetnet, ctrl])
def test_a_tokenizer_read_again_is_the_same(make: Any, tmp_path: Path) -> None:
    vocabulary = vocabulary_of(make(tmp_path), "model")
    again = Vocabulary(
        read_backend(vocabulary.to_json()), bos_id=vocabulary.bos_id, eos_id=vocabulary.eos_id
    )
    assert again.to_json() == vocabulary.to_json()
    assert again.fingerprint == vocabulary.fingerprint
    assert str(tmp_path) not in vocabulary.to_json()


def test_a_recording_cannot_name_another_class_or_place(tmp_path: Path) -> None:
    state = json.loads(vocabulary_of(ctrl(tmp_path), "ctrl").to_json())["slow_tokenizer"]
    for change in ({"class": "AutoModel"}, {"files": {"../vocab.json": ""}}):
        with pytest.raises(SourceError, match="is not one of transformers"):
            read_backend(json.dumps({"slow_tokenizer": state | change})).encode("a")


def test_proteins_are_compared_recorded_and_replayed(proteins: Path, tmp_path: Path) -> None:
    one, other = save_esm(tmp_path / "a", 0), save_esm(tmp_path / "b", 1)
    report = klcli.compare(one, other, proteins)
    assert report.counts["tokens"] == 33 + 9 + 1 + 3 + 1 + 2
    assert report.counts["unknown"] == 2
    recorded = klcli.record(one, proteins, tmp_path / "rec")
    assert recorded.kind == "hidden"
    replayed = klcli.compare(tmp_path / "rec", other)
    assert replayed.metrics["kl"] == report.metrics["kl"]
    again = klcli.compare(tmp_path / "rec", other, proteins)
    assert again.metrics["kl"] == report.metrics["kl"]


def test_the_perplexity_of_a_protein_is_that_of_its_masked_residues(
    tmp_path: Path, klcli: Run
) -> None:
    folder = save_esm(tmp_path / "a", 0)
    (tmp_path / "one.txt").write_text("MKTAYIAK")
    found = klcli("perplexity", folder, tmp_path / "one.txt", "--format", "json", "--quiet")
    assert found.code == 0, found.err
    tokenizer = transformers.EsmTokenizer(str(tmp_path / "a" / "vocab.txt"))
    model = transformers.EsmForMaskedLM.from_pretrained(folder).eval()
    ids = tokenizer("MKTAYIAK", return_tensors="pt")["input_ids"]
    nll = []
    for place in range(1, ids.shape[1] - 1):
        masked = ids.clone()
        masked[0, place] = tokenizer.mask_token_id
        with torch.inference_mode():
            logits = model(input_ids=masked).logits[0, place]
        nll.append(-float(torch.log_softmax(logits.double(), -1)[ids[0, place]]))
    mean = json.loads(found.out)["metrics"]["nll"]["mean"]
    assert mean == pytest.approx(float(np.mean(nll)), abs=1e-6)
