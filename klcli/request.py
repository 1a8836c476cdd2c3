"""What is asked for: frozen requests, checked once where they are made.

The public functions take keyword arguments (see ``keywords``); here they become requests, and from
here on nothing is an option any more.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

from klcli.choices import (
    DEFAULT_OUTLIERS,
    KeepTop,
    NoiseFloor,
    at_least,
    check_fields,
    check_value,
)
from klcli.errors import UsageError, closest
from klcli.hooks import Hooks
from klcli.judge.gate import Gate, interval_fields
from klcli.judge.grammar import parse_gate
from klcli.judge.metrics import COMPARE_METRICS, PERPLEXITY_METRICS
from klcli.judge.patterns import NamedPattern, parse_patterns
from klcli.judge.until import Goal, parse_until
from klcli.keywords import (
    AnyPath,
    CompareOptions,
    Corpora,
    LayersOptions,
    Model,
    RunOptions,
    SidedOptions,
)
from klcli.measure.shard import WHOLE, Shard, check_whole, parse_shard
from klcli.sources.given import GivenFunction, GivenLogits, GivenModel, Spec, paths_of, spec_of
from klcli.sources.kinds import kind_of
from klcli.sources.options import LoadOptions, RecordingFormat
from klcli.storage.places import check_apart
from klcli.text.corpus import STDIN, Texts, is_text
from klcli.text.protocols import BASE_FILE_PROTOCOL
from klcli.text.scope import Fields, Scope

Metrics = Mapping[str, tuple[str, ...]]
Request = TypeVar("Request")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the numbers of a run are held against.

    ``metrics`` are those that the command knows, with their fields. With ``gate_confidence``
    intervals decide; ``baseline`` is the earlier run that relative gates refer to.

    Raises:
        UsageError: a gate that cannot be parsed, or that lacks what it needs.
    """

    gates: Sequence[str] = ()
    gate_confidence: float | None = None
    baseline: str | None = None
    allow_excluded: bool = False
    metrics: Metrics
    parsed: tuple[Gate, ...] = field(init=False)

    def __post_init__(self) -> None:
        confidence = self.gate_confidence
        _check_confidence(confidence)
        texts = (self.gates,) if isinstance(self.gates, str) else tuple(self.gates)
        gates = tuple(parse_gate(text, self.metrics) for text in texts)
        for gate in gates if confidence is not None else ():
            interval_fields(gate, self.metrics)
        relative = [gate.text for gate in gates if gate.relative]
        if relative and self.baseline is None:
            raise UsageError(f"--gate {relative[0]!r} refers to a baseline: give --baseline RUN")
        on_one = [gate.text for gate in gates if gate.relative and gate.of is not None]
        if on_one and confidence is not None:
            raise UsageError(
                f"--gate {on_one[0]!r}: one text is held against a baseline by its number alone: "
                "leave out --gate-confidence, or gate all texts together"
            )
        object.__setattr__(self, "gates", texts)
        object.__setattr__(self, "parsed", gates)


def _check_confidence(confidence: float | None) -> None:
    if confidence is not None and not 0.5 <= confidence < 1:
        raise UsageError(f"--gate-confidence {confidence:g}: give 0.5 or more, and less than 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When a run may end early, and in which order its windows are drawn for that.

    Raises:
        UsageError: a bound that is not a positive number, or a negative seed.
    """

    until: str | None = None
    kl_bound: float | None = None
    seed: int = at_least(0, 0)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kl_bound is not None and not 0 < self.kl_bound < math.inf:
            raise UsageError(f"--kl-bound {self.kl_bound:g}: give a number of nats above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Where a run is kept, and which part of it is scored.

    Raises:
        UsageError: a part that is not one, or that is not kept anywhere.
    """

    run: str | None = None
    shard: str | None = None
    part: Shard = field(init=False)

    def __post_init__(self) -> None:
        if self.run == "":
            raise UsageError("--run '': name a folder")
        part = WHOLE if self.shard is None else parse_shard(self.shard)
        if self.shard is not None and self.run is None:
            raise UsageError("--shard is a part of a run that is joined later: give --run DIR too")
        object.__setattr__(self, "part", part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What ``compare`` and ``perplexity`` have in common: sources are scored on a text.

    ``specs`` are what the user named, one source or the reference and the candidate, and ``loads``
    how each is opened. ``goal`` is what ``stopping.until`` says, and ``patterns`` what
    ``slice_regex`` does. ``keep_top`` says of which tokens
    the report has the most probable tokens, and ``command_line`` is what the user typed.

    Raises:
        UsageError: parts of the request contradict each other.
    """

    specs: tuple[Spec, ...]
    loads: tuple[LoadOptions, ...]
    corpora: tuple[str | Texts, ...]
    fields: Fields
    scope: Scope
    limits: Limits
    stopping: Stopping
    keeping: Keeping
    hooks: Hooks
    batch_tokens: int | None = at_least(1)
    outliers: int = at_least(0, DEFAULT_OUTLIERS)
    keep_top: KeepTop = "outliers"
    command_line: str | None = None
    one_at_a_time: bool = False
    noise_floor: NoiseFloor | None = None
    slice_regex: Sequence[str] = ()
    calibration: str | None = None
    patterns: tuple[NamedPattern, ...] = field(init=False)
    goal: Goal | None = field(init=False)

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "patterns", parse_patterns(self.slice_regex))
        goal, until = None, self.stopping.until
        if until is not None:
            goal = parse_until(until, self.limits.parsed, known=self.limits.metrics)
            if on_one := [gate.text for gate in self.limits.parsed if gate.of is not None]:
                raise UsageError(
                    f"--gate {on_one[0]!r}: --until decides gates on all texts together: leave one "
                    "out, or give that text alone"
                )
            if self.keeping.run is not None:
                raise UsageError(
                    "--until ends a run early, and --run keeps whole ones: leave one out"
                )
            if self.limits.allow_excluded:
                raise UsageError("--until needs every token: leave out --allow-excluded")
        if self.one_at_a_time and len(paths_of(self.specs)) != len(self.specs):
            raise UsageError("one_at_a_time loads models itself: give paths, not loaded models")
        if self.limits.parsed:
            check_whole(self.keeping.part)
        if self.keeping.run is not None:
            check_apart("--run", self.keeping.run, self._inputs())
        object.__setattr__(self, "goal", goal)

    def _inputs(self) -> list[str]:
        """Every path that is read."""
        named = [path for load in self.loads for path in load.paths]
        baseline = [] if self.limits.baseline is None else [self.limits.baseline]
        beside = [self.calibration, self.scope.chat_template]
        given = [path for path in beside if path is not None]
        return [*paths_of(self.specs), *files_among(self.corpora), *named, *baseline, *given]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What ``record`` is asked for: where a model's predictions on a text are kept, and how.

    Raises:
        UsageError: a ``.kld`` file that shall hold what it cannot.
    """

    model: str | GivenModel | GivenFunction
    load: LoadOptions
    corpora: tuple[str | Texts, ...]
    output: str
    fields: Fields
    scope: Scope
    format: RecordingFormat
    hooks: Hooks
    batch_tokens: int | None = at_least(1)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.is_base_file:
            self._check_base_file()
        named = self.load.paths
        model = paths_of((self.model,))
        check_apart("--output", self.output, [*model, *files_among(self.corpora), *named])

    @property
    def is_base_file(self) -> bool:
        """Whether it is a file for llama.cpp, not a recording of klcli."""
        return self.output.endswith(".kld")

    def _check_base_file(self) -> None:
        scope = self.scope
        if scope.protocol != BASE_FILE_PROTOCOL:
            raise UsageError(
                f"a .kld file has the protocol {BASE_FILE_PROTOCOL}: leave out --protocol "
                f"{scope.protocol}"
            )
        if scope.score_from is not None or scope.stride is not None:
            raise UsageError(
                "a .kld file scores the second half of disjoint chunks: leave out --score-from and "
                "--stride"
            )
        if self.format.kind != "auto":
            raise UsageError(f"a .kld file holds 16-bit codes: leave out --kind {self.format.kind}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What ``report`` is asked for: a saved run, or a report (.json), under other limits.

    ``outliers`` is how many are shown, None for as many as the run was made with, and ``keep_top``
    says of which tokens the report has the most probable tokens. Without ``slice_regex`` the run is
    sliced by the patterns that it was made with.
    """

    run: str
    gates: Sequence[str] = ()
    gate_confidence: float | None = None
    baseline: str | None = None
    allow_excluded: bool = False
    outliers: int | None = at_least(0)
    keep_top: KeepTop = "outliers"
    slice_regex: Sequence[str] = ()
    patterns: tuple[NamedPattern, ...] = field(init=False)

    def __post_init__(self) -> None:
        check_fields(self)
        _check_confidence(self.gate_confidence)
        object.__setattr__(self, "patterns", parse_patterns(self.slice_regex))

    def limits(self, metrics: Metrics) -> Limits:
        """The limits, once it is known of which command the run is.

        Raises:
            UsageError: as ``Limits``.
        """
        return Limits(
            metrics=metrics,
            gates=self.gates,
            gate_confidence=self.gate_confidence,
            baseline=self.baseline,
            allow_excluded=self.allow_excluded,
        )


def comparison(
    reference: Model, candidate: Model, corpora: Corpora, options: CompareOptions
) -> Measurement:
    """The request of ``compare``.

    Raises:
        UsageError: an option is wrong whatever the input holds.
    """
    check_known(options, CompareOptions)
    specs = (spec_of(reference), spec_of(candidate))
    loads = _sided_loads(specs, options)
    return _measurement(specs, loads, corpora, COMPARE_METRICS, options)


def perplexity(model: Model, corpora: Corpora, options: RunOptions) -> Measurement:
    """The request of ``perplexity``.

    Raises:
        UsageError: an option is wrong whatever the input holds.
    """
    check_known(options, RunOptions)
    loads = (pick(LoadOptions, options),)
    return _measurement((spec_of(model),), loads, corpora, PERPLEXITY_METRICS, options)


def layers(
    reference: Model, candidate: Model, corpora: Corpora, options: LayersOptions
) -> Measurement:
    """The request of ``layers``: how two models are opened, and the text that they read.

    Raises:
        UsageError: an option is wrong whatever the input holds.
    """
    check_known(options, LayersOptions)
    specs = (spec_of(reference), spec_of(candidate))
    return _measurement(specs, _sided_loads(specs, options), corpora, {}, options)


def recording(
    model: Model, corpora: Corpora, output: AnyPath, wanted: RecordingFormat, options: RunOptions
) -> Recording:
    """The request of ``record``.

    Raises:
        UsageError: an option is wrong whatever the input holds.
    """
    check_known(options, RunOptions)
    place = os.fspath(output)
    scope, spec = pick(Scope, options), spec_of(model)
    if isinstance(spec, GivenLogits):
        raise UsageError("logits in memory are what a recording would hold: save them as a file")
    if place.endswith(".kld") and scope.protocol is None:
        scope = pick(Scope, {**options, "protocol": BASE_FILE_PROTOCOL})
    return Recording(
        model=spec,
        load=pick(LoadOptions, options),
        corpora=as_corpora(corpora),
        output=place,
        fields=pick(Fields, options),
        scope=scope,
        format=wanted,
        hooks=pick(Hooks, options),
        **own_options(Recording, options),
    )


def _measurement(
    specs: tuple[Spec, ...],
    loads: tuple[LoadOptions, ...],
    corpora: Corpora,
    metrics: Metrics,
    options: Mapping[str, object],
) -> Measurement:
    return Measurement(
        specs=specs,
        loads=loads,
        corpora=as_corpora(corpora),
        fields=pick(Fields, options),
        scope=pick(Scope, options),
        limits=pick(Limits, options, metrics=metrics),
        stopping=pick(Stopping, options),
        keeping=pick(Keeping, options),
        hooks=pick(Hooks, options),
        **own_options(Measurement, options),
    )


def _sided_loads(specs: Sequence[Spec], options: SidedOptions) -> tuple[LoadOptions, ...]:
    """How each side is opened: what is given for one side goes before what is given for both.

    The tokens of a file of top log-probabilities are those of the model that it is compared with.
    """
    models = [spec for spec in specs if kind_of(spec) in ("model", "recording")]
    loads = []
    for side, spec in zip(("reference", "candidate"), specs, strict=True):
        by_default: dict[str, object] = {}
        if kind_of(spec) == "top log-probabilities" and models:
            by_default = {"tokenizer": models[0]}
        shared, own = own_options(LoadOptions, options), _of_side(side, options)
        loads.append(pick(LoadOptions, by_default | shared | own))
    return tuple(loads)


def _of_side(side: str, options: Mapping[str, object]) -> dict[str, Any]:
    """What is given for one side, by the names of both."""
    own: dict[str, object] = {}
    for one in fields(LoadOptions):
        name = f"{side}_{one.name}"
        if name in options and options[name] is not None:
            check_value(f"--{name.replace('_', '-')}", options[name], one)
            own[one.name] = options[name]
    return own_options(LoadOptions, own)


def own_options(kind: type, options: Mapping[str, object]) -> dict[str, Any]:
    """The options that a request has a field for; None leaves a field at its default."""
    named = {one.name for one in fields(kind) if one.init}
    given = {n: value for n, value in options.items() if n in named and value is not None}
    return {n: os.fspath(v) if isinstance(v, os.PathLike) else v for n, v in given.items()}


def pick(kind: type[Request], options: Mapping[str, object], **more: Any) -> Request:
    """A part of a request, made of the options that it has fields for."""
    return kind(**own_options(kind, options), **more)


def check_known(options: Mapping[str, object], known: type) -> None:
    """Raise a TypeError where an option is unknown, as Python does, with what may be meant."""
    names = get_type_hints(known)
    for name in sorted(set(options) - set(names)):
        close = closest(name, names)
        meant = f": did you mean {close!r}?" if close else ""
        raise TypeError(f"unknown option {name!r}{meant}")


def as_corpora(given: Corpora) -> tuple[str | Texts, ...]:
    """Paths, and the texts among what was given, which are documents of one corpus."""
    several = [given] if isinstance(given, str | os.PathLike) else given
    texts = tuple(one for one in several if isinstance(one, str) and is_text(one))
    names = tuple(os.fspath(one) for one in several if one not in texts)
    if names.count(STDIN) > 1:
        raise UsageError("stdin (-) can be read once: name it once")
    return (*names, Texts(texts)) if texts else names


def files_among(corpora: Sequence[str | Texts]) -> list[str]:
    """Those of the texts that are paths."""
    return [one for one in corpora if isinstance(one, str)]
