"""Top log-probabilities as servers return them: lower bounds of the truth, or one clear error."""

import gzip
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from klcli.align import align
from klcli.api import compare, perplexity, record
from klcli.errors import KlcliError, MismatchError, SourceError, UsageError
from klcli.measure.evaluate import evaluate
from klcli.measure.scores import TokenScores
from klcli.sources.files.toplogprobs import TopLogprobsSource
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.model import ModelSource
from klcli.sources.opening import open_source
from klcli.sources.options import LoadOptions
from klcli.text.corpus import Document
from klcli.text.examples import Dataset
from klcli.text.scope import Scope
from klcli.text.vocabulary import Vocabulary
from klcli.text.windows import Window
from tests.running import Run

TOKENS = 60
BOUNDED = ("kl", "kl_reverse", "jsd", "tv")

Line = dict[str, Any]
Live = Callable[..., ModelSource]


@pytest.fixture(scope="module")
def live(fixtures: Path) -> Live:
    """The models of the fixtures, each loaded once."""

    @cache
    def load(name: str = "reference") -> ModelSource:
        return load_model(str(fixtures / "models" / name), LoadOptions(device="cpu"))

    return load


@pytest.fixture(scope="module")
def ids(live: Live, fixtures: Path) -> list[int]:
    """The first tokens of the corpus."""
    text = (fixtures / "corpus.txt").read_text(encoding="utf-8")
    return [int(i) for i in live().vocabulary.encode(text).ids[:TOKENS]]


def log_probabilities(source: ModelSource, ids: list[int]) -> Tensor:
    """What the model says of each token but the first: ln p (tokens - 1, vocabulary)."""
    read = np.array(ids)
    window = Window(document=0, inputs=read[:-1], score_from=0, targets=read[1:], position=1)
    [rows] = source.rows([[window]])
    return torch.log_softmax(rows.block(0, len(rows)).double(), dim=-1)


def lines_of(source: ModelSource, ids: list[int], k: int = 8) -> list[Line]:
    """The answer of a server that runs this model."""
    name = [source.vocabulary.bytes_of(i).decode() for i in range(source.vocabulary.size)]
    lines: list[Line] = [{"token": name[ids[0]], "logprob": None, "top_logprobs": None}]
    for token, row in zip(ids[1:], log_probabilities(source, ids), strict=True):
        top = [
            {"token": name[i], "logprob": value, "bytes": list(name[i].encode())}
            for value, i in zip(*(x.tolist() for x in row.topk(k)), strict=True)
        ]
        lines.append({"token": name[token], "logprob": float(row[token]), "top_logprobs": top})
    return lines


def write(path: Path, lines: list[Line]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def file(live: Live, ids: list[int], tmp_path: Path) -> Path:
    """The reference's answer, top 8."""
    return write(tmp_path / "reference.jsonl", lines_of(live(), ids))


def opened(path: Path, tokenizer: Path | None = None) -> TopLogprobsSource:
    source = open_source(
        str(path), LoadOptions(tokenizer=None if tokenizer is None else str(tokenizer))
    )
    assert isinstance(source, TopLogprobsSource)
    return source


def scores(*sources: Any) -> TokenScores:
    table = align(sources, [], Scope()).table
    return evaluate(table, sources, batch_tokens=512, vocabulary_size=112).scores


def two(*rows: dict[str, float], token: str = "a") -> list[Line]:
    """Lines of one token each, with these alternatives and no log-probability of their own."""
    listed = [[{"token": t, "logprob": value} for t, value in row.items()] for row in rows]
    return [{"token": token}, *({"token": token, "top_logprobs": one} for one in listed)]


# Beside a model


def test_the_answer_of_a_server_and_its_model_say_the_same(
    live: Live, ids: list[int], file: Path, reference: Path
) -> None:
    listed = opened(file, reference)
    for sides in ((live(), listed), (listed, live())):
        found = scores(*sides)
        assert len(found) == TOKENS - 1
        for name in BOUNDED:
            assert np.abs(found[name]).max() <= 1e-6
        np.testing.assert_allclose(found["nll_candidate"], found["nll_reference"], atol=1e-9)
        assert found["token_id"].tolist() == ids[1:]


@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_answer_of_a_server_gives_lower_bounds_of_another_model(
    live: Live, ids: list[int], reference: Path, tmp_path: Path, k: int
) -> None:
    listed = opened(write(tmp_path / "x.jsonl", lines_of(live(), ids, k)), reference)
    p, q = (log_probabilities(live(name), ids) for name in ("reference", "candidate"))
    true = (p.exp() * (p - q)).sum(dim=-1).numpy()
    found = scores(listed, live("candidate"))
    assert (found["kl"] <= true + 1e-6).all()
    assert (found["kl"] >= -1e-12).all()
    assert 0 < found["kl"].mean() < true.mean()


def test_a_token_that_is_neither_listed_nor_given_has_no_nll(
    live: Live, ids: list[int], reference: Path, tmp_path: Path
) -> None:
    lines = lines_of(live(), ids, 3)
    for line in lines:
        del line["logprob"]
    found = scores(opened(write(tmp_path / "x.jsonl", lines), reference), live())
    listed = [line["token"] in [one["token"] for one in line["top_logprobs"]] for line in lines[1:]]
    assert 0 < sum(listed) < TOKENS - 1
    nll = found["nll_reference"]
    np.testing.assert_array_equal(~np.isnan(nll), listed)
    np.testing.assert_allclose(nll[listed], found["nll_candidate"][listed], atol=1e-9)
    np.testing.assert_array_equal(
        found["rank_reference"], np.where(listed, found["rank_candidate"], -1)
    )


def test_a_given_token_beyond_the_list_has_an_nll_and_no_rank(
    live: Live, ids: list[int], reference: Path, tmp_path: Path
) -> None:
    """Its probability is known, and how many others lie between it and the list is not."""
    found = scores(opened(write(tmp_path / "x.jsonl", lines_of(live(), ids, 4)), reference), live())
    np.testing.assert_allclose(found["nll_reference"], found["nll_candidate"], atol=1e-9)
    beyond = found["rank_candidate"] > 4
    assert beyond.any()
    assert (found["rank_reference"][beyond] == -1).all()


def test_a_given_token_beyond_the_list_is_not_taken_for_one_of_the_most_probable(
    live: Live, ids: list[int], reference: Path, tmp_path: Path
) -> None:
    found = scores(opened(write(tmp_path / "x.jsonl", lines_of(live(), ids, 4)), reference), live())
    assert np.isnan(found["overlap_5"][found["rank_candidate"] > 4]).all()


def test_a_token_that_the_vocabulary_lacks_counts_as_rest(
    live: Live, ids: list[int], reference: Path, tmp_path: Path
) -> None:
    lines = lines_of(live(), ids)
    for line in lines[1:]:
        lost = line["top_logprobs"][-1]
        if lost["token"] != line["token"]:
            line["top_logprobs"][-1] = {"token": " zebra", "logprob": lost["logprob"]}
    found = scores(opened(write(tmp_path / "x.jsonl", lines), reference), live())
    assert np.abs(found["kl"]).max() <= 1e-6


def test_a_token_that_the_vocabulary_lacks_keeps_its_rank(
    live: Live, ids: list[int], reference: Path, tmp_path: Path
) -> None:
    lines = lines_of(live(), ids)
    for number, line in enumerate(lines[1:]):
        if line["top_logprobs"][0]["token"] != line["token"]:
            name = f" zebra{number % 2}"
            line["top_logprobs"][0] |= {"token": name, "bytes": list(name.encode())}
    listed = opened(write(tmp_path / "x.jsonl", lines), reference)
    found = scores(listed, live())
    known = found["rank_reference"] >= 0
    assert (found["rank_reference"][known] > 0).any()
    np.testing.assert_array_equal(found["rank_reference"][known], found["rank_candidate"][known])
    zebras = found["top1_reference"] >= 112
    assert zebras.any()
    other = opened(
        write(
            tmp_path / "y.jsonl",
            [
                json.loads(
                    json.dumps(line)
                    .replace("zebra0", "gnu")
                    .replace(json.dumps(list(b" zebra0")), json.dumps(list(b" gnu")))
                )
                for line in lines
            ],
        ),
        reference,
    )
    both = scores(listed, other)
    same = both["top1_reference"] == both["top1_candidate"]
    assert 0 < (~same).sum() < zebras.sum()


def test_special_tokens_are_known_by_their_strings(
    live: Live, ids: list[int], reference: Path, tmp_path: Path
) -> None:
    lines = lines_of(live(), [*ids[:5], 1, *ids[5:]])
    listed = opened(write(tmp_path / "x.jsonl", lines), reference)
    assert listed.windows.windows[0].targets.tolist()[4] == 1
    assert np.abs(scores(listed, live())["kl"]).max() <= 1e-6


def test_the_other_side_gives_its_tokenizer(
    klcli: Run, file: Path, reference: Path, candidate: Path
) -> None:
    assert klcli("compare", candidate, file, "--quiet").code == 0
    report = compare(str(file), str(candidate))
    assert report.lower_bounds == ("kl", "kl_reverse", "jsd", "tv")
    assert report.models["reference"]["k"] == 8
    assert [o.token for o in report.outliers] == [
        o.token for o in compare(str(file), str(candidate), tokenizer=str(reference)).outliers
    ]


def test_a_recording_gives_its_tokenizer_too(
    live: Live, ids: list[int], file: Path, reference: Path, tmp_path: Path
) -> None:
    text = b"".join(live().vocabulary.bytes_of(i) for i in ids).decode()
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    record(str(reference), tmp_path / "text.txt", str(tmp_path / "rec"), context=TOKENS)
    kl = compare(str(tmp_path / "rec"), str(file)).metrics["kl"]["max"]
    assert kl == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("keep", [0, 500])
def test_a_recording_whose_tokenizer_is_damaged_gives_none(
    file: Path, reference: Path, corpus: Path, tmp_path: Path, keep: int
) -> None:
    record(str(reference), corpus, str(tmp_path / "rec"), limit=1)
    path = tmp_path / "rec" / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SourceError, match=r"tokenizer\.json"):
        compare(str(file), str(tmp_path / "rec"))
    with pytest.raises(SourceError, match=r"tokenizer\.json"):
        perplexity(str(file), tokenizer=str(tmp_path / "rec"))


@pytest.mark.parametrize("tokenizer", [True, False])
def test_a_corpus_beside_it_must_be_its_text(
    live: Live, ids: list[int], file: Path, reference: Path, tokenizer: bool
) -> None:
    text = b"".join(live().vocabulary.bytes_of(i) for i in ids).decode()
    source = opened(file, reference if tokenizer else None)

    def aligned(text: str) -> Any:
        document = Document(name="text.txt", content=text.encode())
        return align([source], [Dataset(name="x", sha256="0", examples=(document,))], Scope())

    if tokenizer:
        assert aligned(text).table.documents[0].encoding is not None
        with pytest.raises(MismatchError, match="they differ in length"):
            aligned(text + " The dog")
    else:
        with pytest.raises(UsageError, match="--tokenizer"):
            aligned(text)


# Beside another answer


def test_two_answers_need_no_tokenizer(
    live: Live, ids: list[int], file: Path, reference: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "candidate.jsonl", lines_of(live("candidate"), ids))
    bare, known = (scores(opened(file, t), opened(other, t)) for t in (None, reference))
    for name in (*BOUNDED, "nll_reference", "nll_candidate", "overlap_5", "delta_p"):
        np.testing.assert_allclose(bare[name], known[name], atol=1e-12, err_msg=name)
    p, q = (log_probabilities(live(name), ids) for name in ("reference", "candidate"))
    true = (p.exp() * (p - q)).sum(dim=-1).numpy()
    assert (bare["kl"] <= true + 1e-6).all()
    report = compare(str(file), str(other))
    assert {o.token for o in report.outliers} <= {line["token"] for line in lines_of(live(), ids)}
    assert all(o.top_reference for o in report.outliers)


def test_an_answer_against_itself_differs_nowhere(file: Path) -> None:
    found = scores(opened(file), opened(file))
    for name in BOUNDED:
        assert not found[name].any()


def test_answers_about_other_texts_are_a_mismatch(
    live: Live, ids: list[int], file: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "other.jsonl", lines_of(live(), [*ids[:-1], 40]))
    with pytest.raises(MismatchError, match=r"the tokens differ: .*reference\.jsonl.*other\.jsonl"):
        scores(opened(file), opened(other))


def test_an_answer_alone_has_a_perplexity_where_every_token_is_given(
    live: Live, ids: list[int], file: Path
) -> None:
    true = -log_probabilities(live(), ids).gather(-1, torch.tensor(ids[1:])[:, None]).mean()
    assert perplexity(str(file)).metrics["nll"]["mean"] == pytest.approx(float(true), abs=1e-9)


def answer(*texts: dict[str, float], token: str = "the") -> list[Line]:
    """Lines about this token, each with probabilities of some tokens."""
    return two(*({t: math.log(p) for t, p in text.items()} for text in texts), token=token)


@pytest.mark.parametrize("same_hash", [True, False])
def test_two_tokens_never_have_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_hash: bool
) -> None:
    if same_hash:
        monkeypatch.setattr("klcli.sources.files.toplogprobs._hash", lambda _: 2**30 - 1)
    first = opened(write(tmp_path / "1.jsonl", answer({"x": 0.9, "y": 0.05, "the": 0.007})))
    second = opened(write(tmp_path / "2.jsonl", answer({"z": 0.9, "x": 0.05, "the": 0.007})))
    found = scores(first, second)
    rest = 1 - 0.05 - 0.007
    kl = 0.9 * math.log(0.9 / 0.05) + 0.093 * math.log(0.093 / (rest - 0.0))
    assert found["kl"][0] == pytest.approx(kl, abs=1e-3)
    assert found["top1_reference"][0] != found["top1_candidate"][0]
    shown = [source.names.bytes_of(int(found[f"top1_{side}"][0])) for source, side in
             ((first, "reference"), (second, "candidate"))]  # fmt: skip
    assert shown == [b"x", b"z"]


def test_tokens_whose_names_have_one_hash_are_told_apart(klcli: Run, tmp_path: Path) -> None:
    """The names w6268 and w8707 have one hash of 30 bits."""
    rows = [{"w6268": 0.9, "w8707": 0.05, "the": 0.007}] * 9
    swapped = [{"w8707": 0.9, "w6268": 0.05, "the": 0.007}] * 9
    files = [write(tmp_path / f"{n}.jsonl", answer(*r)) for n, r in enumerate((rows, swapped))]
    done = klcli("compare", *files, "--format", "json", "--quiet")
    metrics = json.loads(done.out)["metrics"]
    assert metrics["kl"]["mean"] == pytest.approx(2.457, abs=1e-3)
    assert metrics["top1_agreement"]["value"] == 0


def test_a_token_has_the_same_id_in_every_run(tmp_path: Path) -> None:
    first = opened(write(tmp_path / "1.jsonl", answer({"x": 0.9, "the": 0.05})))
    alone = first.windows.windows[0].targets.tolist()
    scores(first, opened(write(tmp_path / "2.jsonl", answer({"z": 0.9, "y": 0.05}))))
    assert first.windows.windows[0].targets.tolist() == alone


def test_names_beside_numbers_need_a_tokenizer(
    klcli: Run, file: Path, fixtures: Path, tmp_path: Path
) -> None:
    done = klcli("compare", file, fixtures / "logits" / "reference.npz")
    assert done.code == 2
    assert "names its tokens" in done.err
    assert "--tokenizer" in done.err


# The token of the text behind the list


def test_the_token_that_a_server_appends_is_not_ranked(
    live: Live, ids: list[int], reference: Path, tmp_path: Path
) -> None:
    lines = lines_of(live(), ids, 4)
    for line in lines[1:]:
        if line["token"] not in [one["token"] for one in line["top_logprobs"]]:
            line["top_logprobs"].append({"token": line["token"], "logprob": line["logprob"]})
    assert {len(line["top_logprobs"]) for line in lines[1:]} == {4, 5}
    listed = opened(write(tmp_path / "x.jsonl", lines), reference)
    assert listed.provenance["k"] == 4
    found = scores(listed, live())
    beyond = found["rank_candidate"] >= 4
    assert beyond.any()
    assert (found["rank_reference"][beyond] == -1).all()
    np.testing.assert_array_equal(
        found["rank_reference"][~beyond], found["rank_candidate"][~beyond]
    )
    np.testing.assert_allclose(found["nll_reference"], found["nll_candidate"], atol=1e-9)
    assert np.isnan(found["overlap_5"][beyond]).all()


def test_the_mean_rank_is_not_known_where_a_token_is_appended(
    shared: Path, reference: Path
) -> None:
    lists = shared / "cases" / "lists"
    report = compare(
        str(lists / "kplus1.jsonl"), str(lists / "kplus1.npz"), tokenizer=str(reference)
    )
    assert report.metrics["rank_reference"]["mean"] is None
    assert report.metrics["rank_candidate"]["mean"] == pytest.approx(52.98, abs=0.01)


def test_lists_that_do_not_all_end_in_the_token_of_the_text_are_ranked_whole(
    tmp_path: Path,
) -> None:
    lines = answer({"b": 0.6, "a": 0.3}, {"a": 0.6, "b": 0.3}, token="a")
    found = scores(*[opened(write(tmp_path / "x.jsonl", lines))] * 2)
    assert found["rank_reference"].tolist() == [1, 0]


# Responses


def chat(lines: list[Line]) -> Line:
    """A response of a chat that holds these positions."""
    return {"id": "1", "choices": [{"index": 0, "logprobs": {"content": lines}}]}


def completion(lines: list[Line]) -> Line:
    """A response of a completion with echo that holds these positions."""
    listed = [
        line["top_logprobs"] and {one["token"]: one["logprob"] for one in line["top_logprobs"]}
        for line in lines
    ]
    columns = {
        "tokens": [line["token"] for line in lines],
        "token_logprobs": [line.get("logprob") for line in lines],
        "top_logprobs": listed,
        "text_offset": [0] * len(lines),
    }
    return {"object": "text_completion", "choices": [{"text": "", "logprobs": columns}]}


@pytest.mark.parametrize("response", [chat, completion])
def test_a_response_is_read_as_its_positions_are(
    live: Live, ids: list[int], file: Path, reference: Path, tmp_path: Path,
    response: Callable[[list[Line]], Line],
) -> None:  # fmt: skip
    lines = lines_of(live(), ids)
    raw = write(tmp_path / "raw.jsonl", [response(lines)])
    for tokenizer in (None, reference):
        found = scores(opened(raw, tokenizer), opened(file, tokenizer))
        assert len(found) == TOKENS - 1
        assert not found["kl"].any()
    assert np.abs(scores(opened(raw, reference), live())["kl"]).max() <= 1e-6


def test_each_response_is_a_text_of_its_own(
    live: Live, ids: list[int], reference: Path, tmp_path: Path
) -> None:
    texts = [ids[:20], ids[20:55], ids[30:50]]
    responses = [completion(lines_of(live(), text)) for text in texts]
    raw = write(tmp_path / "raw.jsonl", responses)
    listed = opened(raw, reference)
    assert [len(window.targets) for window in listed.windows.windows] == [19, 34, 19]
    found = scores(listed, live())
    assert found["token_id"].tolist() == [i for text in texts for i in text[1:]]
    assert np.abs(found["kl"]).max() <= 1e-6
    np.testing.assert_allclose(found["nll_reference"], found["nll_candidate"], atol=1e-9)
    report = compare(str(raw), str(reference))
    assert report.counts["documents"] == 3


def test_an_answer_to_a_prompt_beside_a_model_is_warned_of(
    klcli: Run, live: Live, ids: list[int], file: Path, reference: Path, tmp_path: Path
) -> None:
    raw = write(tmp_path / "raw.jsonl", [chat(lines_of(live(), ids)[1:])])
    done = klcli("compare", raw, reference, "--format", "json", "--quiet")
    assert "unseen_context" in [one["code"] for one in json.loads(done.out)["warnings"]]
    done = klcli("compare", file, reference, "--format", "json", "--quiet")
    assert "unseen_context" not in [one["code"] for one in json.loads(done.out)["warnings"]]


@pytest.mark.parametrize(
    ("response", "says"),
    [
        ({"choices": []}, "0 choices"),
        ({"choices": [{}, {}]}, "2 choices"),
        ({"choices": 7}, "no choices"),
        ({"choices": [{"text": "a"}]}, "with echo and logprobs"),
        ({"choices": [{"logprobs": None}]}, "with echo and logprobs"),
        ({"choices": [{"logprobs": {"content": None}}]}, "with echo and logprobs"),
        ({"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": [], "top_logprobs": []}}]},
         "with echo and logprobs"),
        ({"choices": [{"logprobs": {"tokens": [], "token_logprobs": [], "top_logprobs": None}}]},
         "with echo and logprobs"),
        ({"choices": [{"logprobs": {"content": [{"token": "a"}]}}]}, "1 positions"),
        (chat([{"token": "a"}] * 2), "position 1 is not a position"),
        ({"token": "a"}, "responses and single positions"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_a_response_without_lists_is_an_error_that_names_its_line(
    tmp_path: Path, response: Line, says: str
) -> None:
    whole = chat(two({"a": -0.5}))
    with pytest.raises(SourceError, match=r"x\.jsonl, line 2\b") as caught:
        opened(write(tmp_path / "x.jsonl", [whole, response]))
    assert says in str(caught.value)


# What a line may say


def test_the_first_line_is_read_and_not_scored_whatever_it_lists(
    live: Live, ids: list[int], file: Path, tmp_path: Path
) -> None:
    lines = lines_of(live(), ids)
    firsts: list[Line] = [
        {"token": lines[0]["token"]},
        {"token": lines[0]["token"], "top_logprobs": lines[1]["top_logprobs"]},
    ]
    for first in firsts:
        other = opened(write(tmp_path / "x.jsonl", [first, *lines[1:]]))
        found = scores(opened(file), other)
        assert len(found) == TOKENS - 1
        assert not found["kl"].any()


def test_the_order_of_the_alternatives_and_what_else_a_line_says_change_nothing(
    live: Live, ids: list[int], file: Path, tmp_path: Path
) -> None:
    lines = lines_of(live(), ids)
    for number, line in enumerate(lines):
        line |= {"position": number, "logit_bias": None, "id": 7}
        if line["top_logprobs"]:
            line["top_logprobs"].reverse()
    found = scores(opened(file), opened(write(tmp_path / "x.jsonl", lines)))
    assert not found["kl"].any()
    np.testing.assert_array_equal(found["top1_candidate"], found["top1_reference"])


def test_a_gzip_and_lines_of_windows_are_read_as_well(file: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes().replace(b"\n", b"\r\n")))
    assert not scores(opened(file), opened(packed))["kl"].any()


def test_bytes_say_which_token_it_is_where_its_text_does_not(tmp_path: Path) -> None:
    half = [0xF0, 0x9F]

    def lines(shown: str) -> list[Line]:
        top = [
            {"token": shown, "logprob": math.log(0.7), "bytes": half},
            {"token": shown, "logprob": math.log(0.2), "bytes": [0x99]},
        ]
        token = {"token": shown, "bytes": half}
        return [token, {**token, "logprob": math.log(0.7), "top_logprobs": top}]

    one = opened(write(tmp_path / "one.jsonl", lines("\ufffd")))
    other = opened(write(tmp_path / "other.jsonl", lines("bytes:\\xf0\\x9f")))
    found = scores(one, other)
    assert found["nll_reference"].tolist() == pytest.approx([-math.log(0.7)])
    assert not found["kl"].any()
    assert one.names.bytes_of(int(one.windows.windows[0].targets[0])) == bytes(half)


def test_bytes_find_the_token_in_a_byte_level_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: n for n, c in enumerate(alphabet)}, []))
    backend.decoder = decoders.ByteLevel()
    vocabulary = Vocabulary(backend, bos_id=None, eos_id=None)
    monkeypatch.setattr("klcli.sources.hf.tokenizer.load_tokenizer", lambda *_: vocabulary)
    top = [{"token": "\ufffd", "bytes": [0x9F], "logprob": -0.1}]
    lines: list[Line] = [
        {"token": "\ufffd", "bytes": [0xF0]},
        {"token": "\ufffd", "bytes": [0x9F], "logprob": -0.1, "top_logprobs": top},
    ]
    listed = opened(write(tmp_path / "x.jsonl", lines), Path("any"))
    [window] = listed.windows.windows
    pieces = [vocabulary.bytes_of(int(i)) for i in (*window.inputs, *window.targets)]
    assert pieces == [b"\xf0", b"\x9f"]


@pytest.mark.parametrize("exponent", [-9999.0, -math.inf])
def test_a_token_of_probability_0_can_be_listed(tmp_path: Path, exponent: float) -> None:
    listed = opened(write(tmp_path / "x.jsonl", two({"a": 0.0, "b": exponent})))
    found = scores(listed, listed)
    assert found["kl"].tolist() == [0.0]
    assert found["nll_reference"].tolist() == [0.0]


@pytest.mark.parametrize("digits", [4, 7])
def test_rounding_in_the_file_is_no_infinite_divergence(tmp_path: Path, digits: int) -> None:
    """Rounded probabilities can sum to a little more than 1; the rest is small then, not none."""
    p = [0.99988, 0.00007, 0.00003]
    true = {name: math.log(x) for name, x in zip("abc", p, strict=True)}
    rounded = {name: round(x, digits) for name, x in true.items()} | {"a": 0.0}
    exact = opened(write(tmp_path / "exact.jsonl", two(true)))
    coarse = opened(write(tmp_path / "coarse.jsonl", two(rounded)))
    kl = float(scores(exact, coarse)["kl"][0])
    assert 0 <= kl < 1e-3


# Bad input


def good() -> list[Line]:
    return two({"a": -0.7, "b": -0.8}, {"a": -0.7, "b": -0.8}, {"a": -0.7, "b": -0.8})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"position": 7}, "is position 7 and should be 2: there is a gap"),
        ({"top_logprobs": None}, "not a position with its top_logprobs"),
        ({"top_logprobs": []}, "the file has a gap"),
        ({"top_logprobs": [{"token": "a"}]}, "not a position with its top_logprobs"),
        ({"top_logprobs": [{"logprob": -1}]}, "not a position with its top_logprobs"),
        ({"top_logprobs": [{"token": "a", "logprob": None}]}, "not a position"),
        ({"top_logprobs": [{"token": "a", "logprob": "much"}]}, "not a position"),
        ({"top_logprobs": [{"token": "a", "logprob": 10**400}]}, "not a position"),
        ({"top_logprobs": {"a": -0.5}}, "not a position"),
        ({"top_logprobs": 7}, "not a position"),
        ({"top_logprobs": ["a", "b"]}, "not a position"),
        ({"top_logprobs": [{"token": "a", "logprob": math.nan}]}, "line 3"),
        ({"top_logprobs": [{"token": "a", "logprob": math.inf}]}, "more than 1"),
        ({"top_logprobs": [{"token": "a", "logprob": 0.1}]}, "sum to 1.1"),
        ({"top_logprobs": [{"token": x, "logprob": -0.1} for x in "ab"]}, "sum to 1.8"),
        ({"top_logprobs": [{"token": "a", "logprob": -2.0}] * 2}, "twice"),
        ({"logprob": math.nan, "token": "c"}, "line 3"),
        ({"logprob": -0.1, "token": "c"}, "sum to 1.8"),
        ({"bytes": [256]}, "not a position"),
        ({"bytes": "abc"}, "not a position"),
        ({"bytes": 7}, "not a position"),
        ({"bytes": 10**30}, "not a position"),
        ({"token": "\ud800"}, "not a position"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_line_that_is_no_position_is_an_error_that_names_it(
    tmp_path: Path, change: Line, says: str
) -> None:
    lines = good()
    lines[2] |= change
    with pytest.raises(SourceError, match=r"x\.jsonl, line 3\b") as caught:
        opened(write(tmp_path / "x.jsonl", lines))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    ["", "   ", "{oops", "null", "7", '"a"', "[]", "{}", "[" * 100_000, '{"text": "The dog"}'],
    ids=["none", "blank", "cut", "null", "number", "string", "list", "empty", "deep", "corpus"],
)
def test_a_line_that_is_no_object_of_that_shape_is_an_error_that_names_it(
    tmp_path: Path, line: str
) -> None:
    lines = [json.dumps(one) for one in good()]
    lines[1:1] = [line]
    (tmp_path / "x.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(SourceError, match=r"x\.jsonl, line 2 is not a position"):
        opened(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "x.jsonl"),
        (b"\n\n", "x.jsonl"),
        (b'{"token": "a"}\n', "has 1 positions: nothing can be scored"),
        (b'{"token": "a"}\n\0\n', "is not text"),
        (b"\xff\xfe\n", "is not"),
    ],
    ids=["empty", "blank", "one line", "zero", "not UTF-8"],
)
def test_a_file_without_positions_is_an_error(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(KlcliError, match=says):
        opened(tmp_path / "x.jsonl")


def test_a_file_that_is_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="check the path"):
        opened(tmp_path / "nowhere.jsonl")


def test_a_token_of_the_text_that_the_tokenizer_lacks_is_an_error_that_says_what_to_give(
    live: Live, ids: list[int], reference: Path, tmp_path: Path
) -> None:
    lines = lines_of(live(), ids)
    lines[9]["token"] = " zebra"
    with pytest.raises(SourceError, match=r"token b' zebra' is not in the vocabulary.*--tokenizer"):
        opened(write(tmp_path / "x.jsonl", lines), reference)
