"""What is found out before anything is loaded: from what is asked for, and a look at the files.

torch alone takes seconds to load, a model up to minutes. Whatever is wrong with a command is said
before that. Nothing here loads torch or transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klcli import torchrun
from klcli.align.checks import check_options
from klcli.align.files import refuse_text, refuse_window_options
from klcli.answer_request import Answering
from klcli.errors import KlcliError, Notice, OutputError, SourceError, UsageError
from klcli.judge.baseline import BaselineRun
from klcli.judge.one_text import check_datasets
from klcli.judge.saved import open_baseline
from klcli.measure.shard import WHOLE
from klcli.rank_request import RankRequest
from klcli.request import Measurement, Recording
from klcli.runs.folder import check_going_on
from klcli.runs.format import RUN
from klcli.sources.checks import check_model, check_source
from klcli.sources.given import GivenFunction, GivenModel
from klcli.sources.kinds import kind_of
from klcli.sources.recording.format import RECORDING
from klcli.storage.answers import check_place
from klcli.storage.places import obstacle_to
from klcli.text.datasets import read_dataset, read_datasets
from klcli.text.duplicates import find_duplicates
from klcli.text.examples import Dataset
from klcli.text.overlap import check_calibration
from klcli.text.templates import read_template

NO_CORPUS = "name a CORPUS: a text file, or - for stdin"
NO_CORPUS_TO_RANK_ON = "name a CORPUS with --corpus: names without it are candidates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What has been read by then: the texts, which stdin gives only once, and the baseline.

    ``notices`` say what a reader should know of the texts.
    """

    corpora: Sequence[Dataset]
    baseline: BaselineRun | None = None
    notices: tuple[Notice, ...] = ()


def check_measurement(request: Measurement, world: int) -> Inputs:
    """Look at all that ``compare`` or ``perplexity`` shall read and write; ``world`` ranks do.

    Raises:
        KlcliError: an input is missing, cannot be read or does not apply, or there is no place for
            the run.
    """
    _check_ranks(request, world)
    _check_sources(request)
    _check_text(request)
    _check_noise_floor(request)
    run = request.keeping.run
    if run is not None:
        RUN.check_place(Path(run))
        check_going_on(Path(run), _known(request))
    corpora = read_datasets(request.corpora, request.scope.split, request.fields)
    check_datasets(request.limits.parsed, corpora)
    baseline = open_baseline(request.limits.baseline)
    if baseline is not None:
        baseline.check_command("compare" if len(request.specs) == 2 else "perplexity")
    notices = _seen_in(corpora, request)
    return Inputs(corpora=corpora, baseline=baseline, notices=notices)


def check_ranking(request: RankRequest) -> tuple[Inputs, list[KlcliError | None]]:
    """Look at all that ``rank`` shall read and write.

    Returns:
        What has been read, and of each candidate what is wrong with it, None for nothing.

    Raises:
        KlcliError: the reference, the text or the baseline is missing or cannot be read, or there
            is no place for the run.
    """
    if torchrun.world_size() > 1:
        raise UsageError("klcli rank runs in one process: run it without torchrun")
    if request.run is not None:
        _check_folder(Path(request.run))
    first = request.pairs[0]
    _check_text(first, NO_CORPUS_TO_RANK_ON)
    corpora = read_datasets(first.corpora, first.scope.split, first.fields)
    check_datasets(first.limits.parsed, corpora)
    check_source(first.specs[0], first.loads[0])
    baseline = open_baseline(first.limits.baseline)
    if baseline is not None:
        baseline.check_command("compare")
    wrong = [_wrong_with(pair) for pair in request.pairs]
    notices = _seen_in(corpora, first)
    return Inputs(corpora=corpora, baseline=baseline, notices=notices), wrong


def _seen_in(datasets: Sequence[Dataset], request: Measurement) -> tuple[Notice, ...]:
    """What stands in the texts twice, and what in the text that a model was calibrated with."""
    if request.calibration is None:
        return tuple(find_duplicates(datasets))
    calibration = read_dataset(request.calibration, request.scope.split)
    return (*find_duplicates(datasets), check_calibration(datasets, calibration))


def _check_folder(folder: Path) -> None:
    """Find out whether runs can be kept in a folder, which may not be there yet."""
    obstacle = obstacle_to(folder / "any.run" if folder.is_dir() else folder)
    if obstacle is not None:
        raise OutputError(f"cannot keep runs in {folder}: {obstacle}")


def _wrong_with(pair: Measurement) -> KlcliError | None:
    """What keeps the candidate of a pair from being compared, as far as a look at it tells."""
    try:
        check_source(pair.specs[1], pair.loads[1])
        if pair.keeping.run is not None and Path(pair.keeping.run).exists():
            RUN.check_place(Path(pair.keeping.run))
            check_going_on(Path(pair.keeping.run), _known(pair))
    except KlcliError as error:
        return error
    return None


def check_recording(request: Recording) -> Inputs:
    """Look at all that ``record`` shall read and write.

    Raises:
        KlcliError: an input is missing or cannot be read, or the output cannot be written.
    """
    if torchrun.world_size() > 1:
        raise UsageError("a recording is made by one process: run klcli record without torchrun")
    if not request.corpora:
        raise UsageError(NO_CORPUS)
    _check_template(request.scope.chat_template)
    output = Path(request.output)
    if not request.is_base_file:
        RECORDING.check_place(output)
    elif obstacle := obstacle_to(output):
        raise OutputError(f"cannot write {output}: {obstacle}")
    if request.load.task != "auto":
        check_options(str(request.model), request.load.task, request.scope)
    corpora = read_datasets(request.corpora, request.scope.split, request.fields)
    if isinstance(request.model, str):
        check_model(request.model, request.load)
    return Inputs(corpora=corpora)


def check_answering(request: Answering) -> list[Dataset]:
    """Look at all that ``answer`` shall read and write.

    Returns:
        The prompts.

    Raises:
        KlcliError: an input is missing, is not a model or cannot be read, or the output cannot be
            written.
    """
    if torchrun.world_size() > 1:
        raise UsageError("answers are made by one process: run klcli answer without torchrun")
    if not request.corpora:
        raise UsageError("name the PROMPTS: a .jsonl file, or - for stdin")
    _check_template(request.chat_template)
    if (kind := kind_of(request.model)) != "model":
        raise SourceError(f"{request.model} is a {kind}, which cannot answer: give a model")
    check_place(Path(request.output))
    datasets = read_datasets(request.corpora, "file", request.fields)
    if isinstance(request.model, str):
        check_model(request.model, request.load)
    return datasets


def check_layers(request: Measurement) -> Inputs:
    """Look at all that ``layers`` shall read: two models, and a text.

    Raises:
        KlcliError: an input is missing, is not a model, or cannot be read.
    """
    if torchrun.world_size() > 1:
        raise UsageError("klcli layers runs in one process: run it without torchrun")
    for spec in request.specs:
        if isinstance(spec, GivenFunction):
            raise SourceError(f"{spec} is a function, which does not show its layers: give a model")
        if (kind := kind_of(spec)) != "model":
            raise SourceError(
                f"{spec} is a {kind}, which does not hold what is between the layers of a model: "
                "give the model itself"
            )
    _check_sources(request)
    _check_text(request)
    corpora = read_datasets(request.corpora, request.scope.split, request.fields)
    return Inputs(corpora=corpora)


def _check_sources(request: Measurement) -> None:
    for spec, load in zip(request.specs, request.loads, strict=True):
        check_source(spec, load)


def _check_ranks(request: Measurement, world: int) -> None:
    for option, given in (("until", request.stopping.until), ("shard", request.keeping.shard)):
        if world > 1 and given is not None:
            raise UsageError(f"--{option} does not go with torchrun: leave one out")


def _check_template(path: str | None) -> None:
    """Find out whether a chat template can be read."""
    if path is not None:
        read_template(path)


def _check_text(request: Measurement, missing: str = NO_CORPUS) -> None:
    """Models need a text: else ``missing`` says so.

    Files bring their tokens, and can take a text if a tokenizer is known.
    """
    _check_template(request.scope.chat_template)
    kinds = {str(spec): kind_of(spec) for spec in request.specs}
    files = [name for name, kind in kinds.items() if kind != "model"]
    if not files and not request.corpora:
        raise UsageError(missing)
    if files:
        refuse_window_options(files[0], request.scope)
    has_tokenizer = {"model", "recording"} & set(kinds.values()) or any(
        load.tokenizer is not None for load in request.loads
    )
    if request.corpora and not has_tokenizer:
        refuse_text(files[0])
    task = request.loads[0].task
    if task != "auto" and not files:
        check_options(str(request.specs[0]), task, request.scope)


def _check_noise_floor(request: Measurement) -> None:
    reference = request.specs[0]
    if request.noise_floor is not None and kind_of(reference) != "model":
        raise UsageError(f"--noise-floor reads the REFERENCE again: {reference} is not a model")
    is_read_twice = isinstance(reference, str | GivenModel)
    if request.noise_floor is not None and (
        not is_read_twice or request.loads[0].engine != "transformers"
    ):
        raise UsageError("--noise-floor needs a reference that transformers runs: compare with it")


def _known(request: Measurement) -> Mapping[str, Any]:
    """What is known already of what makes a run the same one."""
    part = request.keeping.part
    live = {n: spec for n, spec in enumerate(request.specs) if kind_of(spec) == "model"}
    known: dict[str, Any] = {
        "models": {n: {"source": str(spec)} for n, spec in live.items()},
        "keep": 2 * request.outliers,
        "shard": None if part == WHOLE else str(part),
        "limit": request.scope.limit,
        "batch_tokens": request.batch_tokens,
    }
    settled_later = [
        *(["models"] if not live else []),
        *(["limit"] if request.scope.limit is None and len(live) < len(request.specs) else []),
        *(["batch_tokens"] if request.batch_tokens is None else []),
    ]
    return {name: value for name, value in known.items() if name not in settled_later}
