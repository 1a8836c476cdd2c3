"""What klcli does, as functions: ``compare``, ``perplexity``, ``layers``, ``record`` and so on.

Each makes a request of what it is given and hands it on. Importing this loads neither torch nor
transformers, and showing a saved run does not either.
"""

from collections.abc import Sequence
from os import fspath
from typing import TYPE_CHECKING, Unpack

from klcli import request
from klcli.answer_request import answering
from klcli.checks import (
    check_answering,
    check_layers,
    check_measurement,
    check_ranking,
    check_recording,
)
from klcli.choices import DEFAULT_TOP_K, KeepTop, RecordingChoice
from klcli.documented import with_keywords
from klcli.errors import in_one_line
from klcli.judge.layers import Layers
from klcli.judge.ranking import Ranking
from klcli.keywords import (
    AnswerOptions,
    AnyPath,
    CompareOptions,
    Corpora,
    LayersOptions,
    Model,
    RankOptions,
    RunOptions,
)
from klcli.rank_request import ranking
from klcli.render.notebook import Report
from klcli.runs.ranks import joined_ranks
from klcli.sources.kinds import checkpoints_in
from klcli.sources.options import RecordingFormat

if TYPE_CHECKING:
    from klcli.answering import Answered
    from klcli.sources.recording.writer import Recorded


@with_keywords(CompareOptions)
@in_one_line()
def compare(
    reference: Model, candidate: Model, corpus: Corpora = (), **options: Unpack[CompareOptions]
) -> Report:
    """Compare what two sources predict at every scored token of a text.

    Args:
        reference, candidate: a Hub id, a model folder, a ``.gguf`` file, a recording or a logit
            file each; or an object: ``(model, tokenizer)`` of transformers, an array or tensor of
            logits, or ``(logits, token_ids)``.
        corpus: path of a text or several, "-" for stdin, or texts. Not needed with a recording or
            logits, which bring their tokens.
        options: those of the command, see below.

    Returns:
        The report: every divergence is KL(reference‖candidate), in nats.

    Raises:
        KlcliError: an input cannot be read or does not fit the other.
    """
    wanted = request.comparison(reference, candidate, corpus, options)
    return _run(wanted)


@with_keywords(RunOptions)
@in_one_line()
def perplexity(model: Model, corpus: Corpora = (), **options: Unpack[RunOptions]) -> Report:
    """Score every token of a text with one source: NLL, perplexity, bits per byte.

    Args:
        model: a Hub id, a model folder, a ``.gguf`` file, a recording or a logit file.
        corpus: path of a text or several, "-" for stdin. Not needed with a recording or logit file.
        options: those of the command, see below.

    Raises:
        KlcliError: an input cannot be read.
    """
    wanted = request.perplexity(model, corpus, options)
    return _run(wanted)


@with_keywords(RankOptions)
@in_one_line()
def rank(
    reference: Model,
    candidates: Sequence[Model],
    corpus: Corpora = (),
    *,
    keep_order: bool = False,
    run: AnyPath | None = None,
    **options: Unpack[RankOptions],
) -> Ranking:
    """Compare many candidates with one reference, which is read once, and put them in order.

    Args:
        reference: what ``compare`` takes.
        candidates: the same, each once; a folder that holds ``checkpoint-…`` folders stands for
            these.
        corpus: path of a text or several, or texts.
        keep_order: leave the candidates in natural order, as checkpoints of a training run.
        run: folder to keep the run of each candidate in; the same call goes on there.
        options: those of the command, see below.

    Returns:
        A row for each candidate, by KL; those that could not be compared come last and say why.

    Raises:
        KlcliError: the reference or a text cannot be read, or an option is wrong.
    """
    several = [one for given in candidates for one in checkpoints_in(given)]
    wanted = ranking(reference, several, corpus, options, run=run, in_order=keep_order)
    inputs, wrong = check_ranking(wanted)
    from klcli.ranking import rank  # which loads torch

    return rank(wanted, inputs, wrong)


@with_keywords(LayersOptions)
@in_one_line()
def layers(
    reference: Model, candidate: Model, corpus: Corpora, **options: Unpack[LayersOptions]
) -> Layers:
    """Find out where in the network two models part: compare their states layer by layer.

    Args:
        reference, candidate: a Hub id, a model folder, a ``.gguf`` file or ``(model, tokenizer)``
            each.
        corpus: path of a text or several, "-" for stdin, or texts.
        options: those of the command, see below. Without ``limit`` the first 2,048 tokens are read.

    Returns:
        The relative error of each layer, and the first beyond what rounding makes.

    Raises:
        KlcliError: an input cannot be read, is not a model, or does not fit the other.
    """
    wanted = request.layers(reference, candidate, corpus, options)
    inputs = check_layers(wanted)
    from klcli.layerwise import compare_layers  # which loads torch

    return compare_layers(wanted, inputs)


@with_keywords(RunOptions)
@in_one_line()
def record(
    model: Model,
    corpus: Corpora,
    output: AnyPath,
    *,
    kind: RecordingChoice = "auto",
    top_k: int = DEFAULT_TOP_K,
    **options: Unpack[RunOptions],
) -> "Recorded":
    """Save what a model predicts on a text, to compare it later without the model.

    ``output`` is a folder, klcli's own recording, or a file that ends in ``.kld``, for llama.cpp. A
    recording that was killed goes on where it stopped; a complete one is left as it is.

    Args:
        model: a Hub id, a model folder or a ``.gguf`` file.
        corpus: path of a text or several, "-" for stdin.
        output: where to.
        kind: "hidden" keeps the final hidden states and the output head once, small and exact;
            "logits" the logits; "topk" the ``top_k`` most probable tokens, which give lower bounds.
            "auto" is hidden where a probe proves the head, else logits.
        top_k: how many tokens "topk" keeps.
        options: those of the command, see below; gates do not apply.

    Raises:
        KlcliError: an input cannot be read, or the output cannot be written.
    """
    wanted = RecordingFormat(kind=kind, top_k=top_k)
    asked = request.recording(model, corpus, output, wanted, options)
    inputs = check_recording(asked)
    from klcli.workflow import keep_predictions  # which loads torch

    return keep_predictions(asked, inputs)


@with_keywords(AnswerOptions)
@in_one_line()
def answer(
    model: Model, prompts: Corpora, output: AnyPath, **options: Unpack[AnswerOptions]
) -> "Answered":
    """Let a model answer prompts, and keep what it says token by token.

    ``output`` is a ``.jsonl`` file, which ``compare`` takes for a text: both models then read the
    answers of this one. What was killed goes on where it stopped.

    Args:
        model: a Hub id, a model folder or a ``.gguf`` file.
        prompts: path of a file of conversations or prompts or several, "-" for stdin, or texts.
        output: where to.
        options: those of the command, see below.

    Raises:
        KlcliError: an input cannot be read, or the output cannot be written.
    """
    asked = answering(model, prompts, output, options)
    datasets = check_answering(asked)
    from klcli.answering import answer  # which loads torch

    return answer(asked, datasets)


def _run(wanted: request.Measurement) -> Report:
    """Look at all that is read and written, and only then load torch and run."""
    with joined_ranks(wanted.keeping.run) as ranks:
        inputs = check_measurement(wanted, ranks.world)
        from klcli.workflow import run

        return Report.of(run(wanted, inputs, ranks))


@in_one_line()
def report(
    run: AnyPath,
    *,
    gates: Sequence[str] = (),
    gate_confidence: float | None = None,
    baseline: AnyPath | None = None,
    allow_excluded: bool = False,
    outliers: int | None = None,
    keep_top: KeepTop = "outliers",
    slice_regex: Sequence[str] = (),
) -> Report:
    """Show a saved run again, under these gates.

    Args:
        run: a folder kept with ``run``, or a report (.json), which holds no single tokens.
        gates, gate_confidence, baseline, allow_excluded, outliers, keep_top, slice_regex: as for
            ``compare``.

    Raises:
        KlcliError: it cannot be read, or what is asked for needs tokens that are not there.
    """
    from klcli.review import review

    wanted = request.Review(
        run=fspath(run),
        gates=gates,
        gate_confidence=gate_confidence,
        baseline=None if baseline is None else fspath(baseline),
        allow_excluded=allow_excluded,
        outliers=outliers,
        keep_top=keep_top,
        slice_regex=slice_regex,
    )
    return Report.of(review(wanted))


@in_one_line()
def merge(runs: Sequence[AnyPath], output: AnyPath) -> Report:
    """Join the shards of one run, as ``shard`` split it, into one: the same report as of one run.

    Args:
        runs: the folders of all shards.
        output: the folder to keep the whole run in.

    Raises:
        KlcliError: a shard is missing, incomplete, twice there, or of another run.
    """
    from klcli.review import merge

    return Report.of(merge([fspath(run) for run in runs], fspath(output)))
