"""A Hugging Face causal language model: a Hub id, a folder, or a GGUF file."""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from klcli.errors import SourceError
from klcli.sources.head import Head
from klcli.sources.options import LoadOptions, choose_device
from klcli.sources.rows import HeadRows, TensorRows, block_rows
from klcli.text.vocabulary import Vocabulary
from klcli.text.windows import Window

PROBE_LENGTH = 32
SAMPLED = 1024
"""How many numbers of a weight go into its fingerprint."""
EXACT_ENOUGH = 1e-7
"""Nats. A head applied apart from its model may differ from it by this, or by twice what the model
differs from itself in another batch shape, whichever is more."""


class CausalSource:
    """A causal model that predicts the next token at every position of a window.

    Where the model allows it the body runs once a batch and the output head a block of rows at a
    time, so that the logits of a whole batch never exist; a probe at load proves that this gives
    the model's own logits. Otherwise (``separates_head`` is False) a batch's logits are held whole.
    """

    windows = None

    def __init__(
        self, name: str, model: Any, vocabulary: Vocabulary, revision: str | None = None
    ) -> None:
        self.name = name
        self.vocabulary = vocabulary
        self._model = model
        self._embeddings = model.get_output_embeddings()
        self.device: torch.device = model.device
        self.longest = _longest_window(model.config)
        self.proof = self._prove()
        self._head = self.proof.head
        self.width, self._dtype = self.proof.width, self.proof.dtype
        self.state_dtype: torch.dtype = model.dtype
        self.provenance: dict[str, Any] = {
            "source": name,
            "kind": "causal",
            "revision": revision or getattr(model.config, "_commit_hash", None),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(self.device),
            "architecture": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "vocabulary_width": self.width,
            "tokenizer": vocabulary.fingerprint,
        }

    @property
    def separates_head(self) -> bool:
        """Whether the output head is applied block by block."""
        return self._head is not None

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[HeadRows | TensorRows]:
        """The scored rows of each batch, window by window. All windows of a batch have one length.

        Raises:
            SourceError: the model fails on a batch.
        """
        for batch in batches:
            ids = torch.stack([torch.tensor(window.inputs, dtype=torch.long) for window in batch])
            yield self._rows_of(ids.to(self.device), batch)

    @torch.inference_mode()
    def _rows_of(self, ids: Tensor, batch: Sequence[Window]) -> HeadRows | TensorRows:
        try:
            states = self._logits(ids) if self._head is None else self._hidden(ids)
        except (RuntimeError, ValueError, IndexError) as error:
            raise SourceError(
                f"{self.name} fails on a batch of {ids.shape[0]} x {ids.shape[1]} tokens: "
                f"{_gist(error)}; try a smaller --batch-tokens or --context"
            ) from error
        scored = torch.cat(
            [
                states[i, window.score_from : window.score_from + len(window.targets)]
                for i, window in enumerate(batch)
            ]
        )
        if self._head is None:
            return TensorRows(scored)
        return HeadRows(scored, self._head, block_rows(self.width, self._dtype.itemsize))

    def _logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        return logits

    def _hidden(self, ids: Tensor) -> Tensor:
        """What the output head is given: (windows, positions, d).

        The head itself is handed one position only, so that the model's own product costs nothing.
        """
        captured: list[Tensor] = []

        def keep(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            captured.append(args[0])
            return (args[0][:, -1:], *args[1:])

        with self._embeddings.register_forward_pre_hook(keep):
            self._model(input_ids=ids, use_cache=False)
        if len(captured) != 1 or captured[0].shape[:2] != ids.shape:
            raise ValueError("the output head is not applied once to every position")
        return captured[0]

    @torch.inference_mode()
    def _prove(self) -> "Proof":
        """Find out by a probe whether the model is causal, and whether its head stands alone.

        Raises:
            SourceError: what comes later changes what was predicted before: no causal model.
        """
        ids = self._probe()
        whole = self._logits(ids)
        dtype = whole.dtype
        noise = _largest_kl(whole, torch.cat([self._logits(one[None]) for one in ids]))
        bound = max(EXACT_ENOUGH, 2 * noise)
        other_end = ids.clone()
        other_end[:, -1] = (ids[:, -1] + 1) % int(ids.max() + 1)
        if _largest_kl(whole[:, :-1], self._logits(other_end)[:, :-1]) > bound:
            raise SourceError(
                f"{self.name} is no causal model: a token changes what it predicts before it"
            )
        try:
            hidden = self._hidden(ids)
            head = _head_of(self._embeddings, self._model.config, hidden.shape[-1], dtype)
            self_kl = self._divergence_of_head(head, hidden, whole)
        except (AttributeError, ValueError, TypeError, IndexError, RuntimeError) as error:
            head, self_kl, reason = None, math.inf, f"it cannot be run apart: {error}"
        else:
            reason = f"run apart it differs by {self_kl:.2g} nats from the model"
        proved = self_kl <= bound
        return Proof(
            head=head if proved else None,
            width=whole.shape[-1],
            dtype=dtype,
            noise=noise,
            self_kl=self_kl,
            reason=None if proved else reason,
        )

    @torch.inference_mode()
    def self_kl(self, head: Head) -> float:
        """The largest KL (nats) of the logits of ``head`` from the model's own, on a probe."""
        ids = self._probe()
        return self._divergence_of_head(head, self._hidden(ids), self._logits(ids))

    @torch.inference_mode()
    def stored_matrix(self) -> dict[str, Tensor]:
        """The output head's matrix, as a recording keeps it."""
        if self._head is None:
            raise ValueError("the head does not stand alone")
        return self._head.matrix(self.state_dtype, self.device)

    def weights_fingerprint(self) -> str:
        """sha256 over the config and the weights: names, shapes and a sample of the numbers."""
        config = self._model.config.to_dict()
        settings = {k: v for k, v in config.items() if k not in ("_name_or_path", "_commit_hash")}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, weight in self._model.state_dict().items():
            flat = weight.detach().flatten()
            sample = flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous()
            digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
            digest.update(sample.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _probe(self) -> Tensor:
        """Two short windows of random tokens."""
        generator = torch.Generator().manual_seed(0)
        top = min(self._model.config.get_text_config().vocab_size, self.vocabulary.size)
        shape = (2, min(PROBE_LENGTH, self.longest or PROBE_LENGTH))
        return torch.randint(0, top, shape, generator=generator).to(self.device)

    def _divergence_of_head(self, head: Head, hidden: Tensor, whole: Tensor) -> float:
        size = block_rows(whole.shape[-1], whole.dtype.itemsize)
        apart = HeadRows(hidden.flatten(0, 1), head, size).block(0, whole.shape[:2].numel())
        return _largest_kl(whole.flatten(0, 1), apart)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What the probe of a model found.

    ``head`` is None where it cannot be separated, and ``reason`` says why. ``self_kl`` is the
    largest KL (nats) of the head's logits from the model's own, ``noise`` that of the model's own
    in another batch shape. Logits are ``width`` wide and of ``dtype``.
    """

    head: Head | None
    width: int
    dtype: torch.dtype
    noise: float
    self_kl: float
    reason: str | None

    @property
    def bound(self) -> float:
        """What ``self_kl`` may be."""
        return max(EXACT_ENOUGH, 2 * self.noise)


def load_causal(spec: str, options: LoadOptions) -> CausalSource:
    """Load a causal language model and its tokenizer.

    ``spec`` is a folder, a ``.gguf`` file, or a Hub id.

    Raises:
        SourceError: there is no such model, it is no causal LM, weights are missing, or it has no
            fast tokenizer.
    """
    device = choose_device(options.device)
    place, gguf = _locate(spec)
    shared: dict[str, Any] = {
        "revision": options.revision,
        "trust_remote_code": options.trust_remote_code,
        **gguf,
    }
    with _quiet_transformers(), _loading(spec):
        if not gguf:
            _check_causal(spec, transformers.AutoConfig.from_pretrained(place, **shared))
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            place,
            dtype=_dtype(options.dtype, is_gguf=bool(gguf)),
            output_loading_info=True,
            **shared,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **shared)
    if missing := sorted(loaded["missing_keys"]):
        raise SourceError(
            f"{spec} lacks {len(missing)} weights of a {type(model).__name__}, first {missing[0]}: "
            "give a complete causal language model"
        )
    vocabulary = vocabulary_of(tokenizer, spec)
    with _loading(spec):
        model.to(device).eval()
        return CausalSource(spec, model, vocabulary, options.revision)


def vocabulary_of(tokenizer: Any, name: str) -> Vocabulary:
    """The vocabulary of a Hugging Face tokenizer.

    Raises:
        SourceError: it is not a fast tokenizer, which alone knows where its tokens lie in the text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise SourceError(f"{name}: its tokenizer has no fast form (tokenizer.json); convert it")
    return Vocabulary(backend, bos_id=tokenizer.bos_token_id, eos_id=tokenizer.eos_token_id)


def load_tokenizer(spec: str, options: LoadOptions) -> Vocabulary:
    """Only the tokenizer of a model: a folder, a ``.gguf`` file, or a Hub id.

    Raises:
        SourceError: there is none.
    """
    place, gguf = _locate(spec)
    with _quiet_transformers(), _loading(spec):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            place,
            revision=options.revision,
            trust_remote_code=options.trust_remote_code,
            **gguf,
        )
    return vocabulary_of(tokenizer, spec)


def _locate(spec: str) -> tuple[str, dict[str, Any]]:
    """Where transformers shall look, and the extra arguments of a GGUF file."""
    path = Path(spec or "no name")
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SourceError(f"the folder {spec} holds no model: it has no config.json")
        return spec, {}
    if path.exists():
        raise SourceError(f"{spec} is neither a model nor a logit file that klcli knows")
    if path.suffix == ".gguf" or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", spec):
        raise SourceError(f"no model at {spec!r}: there is no such file or folder")
    return spec, {}


@contextlib.contextmanager
def _loading(spec: str) -> Iterator[None]:
    """Loaders raise whatever they like: say which model it was, and keep the cause."""
    try:
        yield
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(
            f"cannot load {spec!r}: it is no file or folder here, and no model of that name could "
            f"be had from the Hub or its cache ({_gist(error)})"
            if not Path(spec).exists()
            else f"cannot load {spec}: {_gist(error)}"
        ) from error
    except Exception as error:
        raise SourceError(f"cannot load {spec}: {type(error).__name__}: {_gist(error)}") from error


def _gist(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:400]


def _check_causal(spec: str, config: Any) -> None:
    architectures = getattr(config, "architectures", None) or []
    if getattr(config, "is_encoder_decoder", False):
        raise SourceError(f"{spec} is an encoder-decoder model; klcli compares causal models")
    if architectures and all("MaskedLM" in name for name in architectures):
        raise SourceError(f"{spec} is a masked model ({architectures[0]}); give a causal model")


def _dtype(name: str, *, is_gguf: bool) -> Any:
    if name == "auto":
        # A GGUF file is dequantised on loading: only float32 keeps what it held.
        return torch.float32 if is_gguf else "auto"
    return getattr(torch, name)


def _longest_window(config: Any) -> int | None:
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def _head_of(embeddings: Any, config: Any, size: int, dtype: torch.dtype) -> Head:
    """The output embeddings, and what some families do to the logits behind them."""
    text = config.get_text_config()
    return Head(
        project=embeddings,
        size=size,
        dtype=dtype,
        multiplier=getattr(text, "logit_scale", None),
        divisor=getattr(text, "logits_scaling", None),
        softcap=getattr(text, "final_logit_softcapping", None),
    )


def _largest_kl(p: Tensor, q: Tensor) -> float:
    """The largest KL (nats) of rows of logits (rows, vocabulary), by the direct float64 sum."""
    log_p = torch.log_softmax(p.cpu().double(), dim=-1)
    log_q = torch.log_softmax(q.cpu().double(), dim=-1)
    return float((log_p.exp() * (log_p - log_q)).nan_to_num(0.0).sum(dim=-1).max())


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars or advice of transformers on our stderr while it loads."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
