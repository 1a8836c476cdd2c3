"""One scoring of a text by one program, in the interpreter that has it: `drivers.py PROGRAM JOB`.

JOB is JSON: the folders of the ``models`` (one, or two to compare), the ``text`` (a path), the
``context`` and ``stride``, the ``batch`` (sequences), and what else a program needs. Prints JSON:
``seconds`` of the scoring, loading left out, the ``tokens`` scored and their mean ``nll`` (or
``kl``), where the program says so.

Only what all of these environments have is imported here.
"""

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

Job = dict[str, Any]


def load(path: str) -> tuple[Any, Any]:
    """A model in float32, and its tokenizer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    backend = str(Path(path) / "tokenizer.json")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=backend, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    return model.eval(), tokenizer


def lines(job: Job) -> list[str]:
    """The lines of the text that have something in them."""
    return [line for line in text(job).split("\n") if line.strip()]


def text(job: Job) -> str:
    """The text."""
    return Path(job["text"]).read_text(encoding="utf-8")


class Clock:
    """Seconds since it was made, less those that were spent in functions that it was set on."""

    def __init__(self) -> None:
        self.left_out = 0.0
        self.begin = time.perf_counter()

    def leave_out(self, owner: Any, name: str) -> None:
        """Do not count what a function takes."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.left_out += time.perf_counter() - begin

        setattr(owner, name, timed)

    def seconds(self) -> float:
        """What has been counted."""
        return time.perf_counter() - self.begin - self.left_out


def klcli(job: Job) -> Job:
    """``klcli.compare`` or ``klcli.perplexity``, from the text to the report."""
    api: Any = importlib.import_module("klcli.api")
    clock = Clock()
    clock.leave_out(importlib.import_module("klcli.workflow"), "open_source")
    run = api.compare if len(job["models"]) == 2 else api.perplexity
    report = run(*job["models"], job["text"], dtype="float32", **job["options"])
    of = {name: report.metrics[name]["mean"] for name in ("nll", "kl") if name in report.metrics}
    return {"seconds": clock.seconds(), "tokens": report.counts["tokens"], **of}


def lm_eval(job: Job) -> Job:
    """lm-eval: ``loglikelihood_rolling`` of the whole text."""
    huggingface: Any = importlib.import_module("lm_eval.models.huggingface")
    instance: Any = importlib.import_module("lm_eval.api.instance")
    model, tokenizer = load(job["models"][0])
    program = huggingface.HFLM(
        pretrained=model, tokenizer=tokenizer, max_length=job["context"], batch_size=job["batch"]
    )
    request = instance.Instance("loglikelihood_rolling", {}, (text(job),), 0)
    clock = Clock()
    (log_likelihood,) = program.loglikelihood_rolling([request], disable_tqdm=True)
    seconds = clock.seconds()
    tokens = len(tokenizer(text(job), add_special_tokens=False).input_ids)
    return {"seconds": seconds, "tokens": tokens, "nll": -log_likelihood / tokens}


def strided(job: Job) -> Job:
    """The sliding window that the guide to perplexity of transformers describes.

    One window at a time; what a window before has scored is context, which labels of -100 say.
    """
    model, tokenizer = load(job["models"][0])
    clock = Clock()
    ids = tokenizer(text(job), return_tensors="pt").input_ids
    total, scored_to, tokens = torch.zeros(()), 1, 0
    with torch.no_grad():
        for start in range(0, ids.shape[1], job["stride"]):
            stop = min(start + job["context"], ids.shape[1])
            labels = ids[:, start:stop].clone()
            labels[:, : scored_to - start] = -100
            new = stop - scored_to
            total += model(ids[:, start:stop], labels=labels).loss * new
            tokens, scored_to = tokens + new, stop
            if stop == ids.shape[1]:
                break
    nll = float(total) / tokens
    return {"seconds": clock.seconds(), "tokens": tokens, "nll": nll}


def evaluate(job: Job) -> Job:
    """The metric ``perplexity`` of evaluate, on every line."""
    metric = importlib.import_module("evaluate").load(job["script"], module_type="metric")
    clock = Clock()
    clock.leave_out(transformers.AutoModelForCausalLM, "from_pretrained")
    clock.leave_out(transformers.AutoTokenizer, "from_pretrained")
    metric.compute(
        predictions=lines(job), model_id=job["models"][0], batch_size=job["batch"], device="cpu"
    )
    return {"seconds": clock.seconds()}


def minicons(job: Job) -> Job:
    """minicons: ``token_score`` of every line, whose first token it does not score."""
    scorer: Any = importlib.import_module("minicons.scorer")
    program = scorer.IncrementalLMScorer(load(job["models"][0])[0], "cpu", load_tokenizer(job))
    clock = Clock()
    scores = [
        score
        for batch in batches(lines(job), job["batch"])
        for line in program.token_score(batch, surprisal=True)
        for _, score in line[1:]
    ]
    nll = sum(scores) / len(scores)
    return {"seconds": clock.seconds(), "tokens": len(scores), "nll": nll}


def load_tokenizer(job: Job) -> Any:
    """The tokenizer of the first model, with what pads."""
    tokenizer = load(job["models"][0])[1]
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def batches(items: list[str], size: int) -> Iterator[list[str]]:
    """So many items at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def script(job: Job) -> Job:
    """The two-model script that one writes first: all logits of both, then the KL of every token.

    It holds tokens × vocabulary twice, in float32, and as often again for the logarithms.
    """
    (reference, tokenizer), (candidate, _) = (load(path) for path in job["models"])
    clock = Clock()
    ids = tokenizer(text(job), return_tensors="pt").input_ids[:, : job["tokens"] + 1]
    context, count = job["context"], ids.shape[1] - 1
    with torch.no_grad():
        log_p, log_q = (
            torch.cat(
                [model(ids[:, at : min(at + context, count)]).logits[0]
                 for at in range(0, count, context)]
            ).log_softmax(-1)
            for model in (reference, candidate)
        )  # fmt: skip
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    return {"seconds": clock.seconds(), "tokens": count, "kl": float(kl.mean())}


PROGRAMS = {
    "klcli": klcli,
    "lm_eval": lm_eval,
    "strided": strided,
    "evaluate": evaluate,
    "minicons": minicons,
    "script": script,
}

if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    result = PROGRAMS[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps(result))
