"""Loading a Hugging Face model and its tokenizer: a Hub id, a folder, or a GGUF file."""

import contextlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import transformers
from transformers.models.auto import modeling_auto

from klcli.errors import SourceError
from klcli.sources.options import DtypeName, LoadOptions, Task, choose_device
from klcli.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from klcli.sources.causal import CausalSource
    from klcli.sources.masked import MaskedSource
    from klcli.sources.model import ModelSource


def load_model(spec: str, options: LoadOptions) -> "CausalSource | MaskedSource":
    """Load a language model and its tokenizer.

    ``spec`` is a folder, a ``.gguf`` file, or a Hub id. Whether it is causal or masked the options
    say, or else its config.

    Raises:
        SourceError: there is no such model, it is no language model, weights are missing, or it
            has no fast tokenizer.
    """
    from klcli.sources.causal import CausalSource
    from klcli.sources.masked import MaskedSource

    device = choose_device(options.device)
    place, gguf = _locate(spec)
    shared: dict[str, Any] = {
        "revision": options.revision,
        "trust_remote_code": options.trust_remote_code,
        **gguf,
    }
    with _quiet_transformers(), _loading(spec):
        task = options.task
        if task == "auto":
            config = None if gguf else transformers.AutoConfig.from_pretrained(place, **shared)
            task = "causal" if config is None else _task_of(spec, config)
        kind = (
            transformers.AutoModelForMaskedLM
            if task == "masked"
            else transformers.AutoModelForCausalLM
        )
        dtype = _dtype(options.dtype, is_gguf=bool(gguf))
        spread: dict[str, Any] = {}
        if options.device == "auto" and (room := free_memory(device)) is not None:
            size = _size_of_weights(kind, place, dtype, shared)
            spread = _spread(spec, size, room, device)
        if spread and options.compile:
            raise SourceError(
                f"{spec} has to be split, and so cannot be compiled: leave out --compile"
            )
        model, loaded = kind.from_pretrained(
            place, dtype=dtype, output_loading_info=True, **spread, **shared
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **shared)
    if missing := sorted(loaded["missing_keys"]):
        raise SourceError(
            f"{spec} lacks {len(missing)} weights of a {type(model).__name__}, first {missing[0]}: "
            f"give a complete {task} language model"
        )
    vocabulary = vocabulary_of(tokenizer, spec)
    with _loading(spec):
        model.eval()
        if not spread:
            model.to(device)
        kind_of_source = MaskedSource if task == "masked" else CausalSource
        if not options.compile:
            return kind_of_source(spec, model, vocabulary, options.revision, options.batch_tokens)
        with _compiling(spec):
            compile_blocks(model)
            source = kind_of_source(spec, model, vocabulary, options.revision, options.batch_tokens)
            source.provenance["compiled"] = True
            return source


SHARE_FOR_WEIGHTS = 0.9
"""Of the free memory of a device; the rest is for what a forward pass needs."""


def free_memory(device: str) -> int | None:
    """How many bytes are free for weights on a device, None where models are not spread.

    What is free on a GPU counts without what torch keeps for itself to use again.
    """
    if torch.device(device).type != "cuda":
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def _size_of_weights(kind: Any, place: str, dtype: Any, shared: Mapping[str, Any]) -> int:
    """How many bytes the weights of a model take, by its config; 0 for what is quantised.

    How large that is its config does not tell, and it is made for a single device.
    """
    config = transformers.AutoConfig.from_pretrained(place, **shared)
    if getattr(config, "quantization_config", None) is not None:
        return 0
    given = {} if dtype == "auto" else {"dtype": dtype}
    trust = shared["trust_remote_code"]
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=trust, **given)
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _spread(spec: str, size: int, room: int, device: str) -> dict[str, Any]:
    """The arguments that spread a model over devices where its weights do not fit one.

    Raises:
        SourceError: that cannot be.
    """
    if size <= SHARE_FOR_WEIGHTS * room:
        return {}
    too_large = (
        f"{spec} has {size / 1e9:,.1f} GB of weights, and {device} has {room / 1e9:,.1f} GB free"
    )
    if "LOCAL_RANK" in os.environ:
        raise SourceError(
            f"{too_large}: under torchrun each rank has one device, and a model that does not fit "
            "is not split; run without torchrun, or try --dtype bfloat16"
        )
    if importlib.util.find_spec("accelerate") is None:
        raise SourceError(
            f"{too_large}: to split it over all devices and the machine's memory, "
            "pip install accelerate"
        )
    return {"device_map": "auto"}


def compile_blocks(model: Any) -> None:
    """Let torch compile the blocks of a model, where it spends its time, when they first run.

    The model around them stays as it is, and so do the hooks on its body and its head. Sizes are
    left open, or each length of a batch would be compiled anew.

    Raises:
        SourceError: there are no blocks.
    """
    blocks = max(_stacks(model), key=len, default=None)
    if blocks is None:
        raise SourceError(f"{type(model).__name__} has no stack of blocks: leave out --compile")
    for block in blocks:
        block.compile(dynamic=True)


def _stacks(module: torch.nn.Module) -> Iterator[torch.nn.ModuleList]:
    """The lists of modules in a model, without those inside of others, such as experts."""
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            yield child
        else:
            yield from _stacks(child)


@contextlib.contextmanager
def _compiling(spec: str) -> Iterator[None]:
    """The probe of a model is the first to run what is compiled, and to fail if that cannot be."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).split("\n\n")[0]  # behind it stands how to debug torch
        raise SourceError(
            f"cannot compile {spec}: {' '.join(reason.split())}; torch.compile needs a C++ "
            "compiler on a CPU and Triton on a GPU: install that, or leave out --compile"
        ) from error


NoiseFloor = Literal["batch", "dtype", "attention"]


def read_differently(
    source: "CausalSource | MaskedSource | ModelSource", by: NoiseFloor, options: LoadOptions
) -> "CausalSource | MaskedSource":
    """The same model loaded again, to be read in another way.

    ``batch`` reads one sequence at a time, ``dtype`` has other number formats (bfloat16 for
    float32, float32 for others), ``attention`` the plain kernel in the place of the fused one.

    Raises:
        SourceError: it cannot be loaded so.
    """
    options = replace(options, task=source.task)
    if by == "batch":
        return load_model(source.name, replace(options, batch_tokens=1))
    if by == "dtype":
        other: DtypeName = "bfloat16" if source.provenance["dtype"] == "float32" else "float32"
        return load_model(source.name, replace(options, dtype=other))
    again = load_model(source.name, options)
    again.use_plain_attention()
    return again


def vocabulary_of(tokenizer: Any, name: str) -> Vocabulary:
    """The vocabulary of a Hugging Face tokenizer.

    Raises:
        SourceError: it is not a fast tokenizer, which alone knows where its tokens lie in the text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise SourceError(f"{name}: its tokenizer has no fast form (tokenizer.json); convert it")
    return Vocabulary(
        backend,
        bos_id=tokenizer.bos_token_id,
        eos_id=tokenizer.eos_token_id,
        mask_id=tokenizer.mask_token_id,
        unknown_id=tokenizer.unk_token_id,
    )


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


def gist(error: BaseException) -> str:
    """The message of somebody else's error in one line of bounded length."""
    return (" ".join(str(error).split()) or type(error).__name__)[:400]


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
            f"be had from the Hub or its cache ({gist(error)})"
            if not Path(spec).exists()
            else f"cannot load {spec}: {gist(error)}"
        ) from error
    except Exception as error:
        raise SourceError(f"cannot load {spec}: {type(error).__name__}: {gist(error)}") from error


def _task_of(spec: str, config: Any) -> Task:
    """What a config says its model does: the class it was saved from, else what its family is for.

    Raises:
        SourceError: it is neither a causal nor a masked language model.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise SourceError(
            f"{spec} is an encoder-decoder model; klcli takes causal and masked language models"
        )
    architectures = set(getattr(config, "architectures", None) or [])
    if architectures & set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return "causal"
    is_encoder = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    fills_in = any("MaskedLM" in name for name in architectures)
    if fills_in or (is_encoder and not getattr(config, "is_decoder", False)):
        return "masked"
    return "causal"


def _dtype(name: str, *, is_gguf: bool) -> Any:
    if name == "auto":
        # A GGUF file is dequantised on loading: only float32 keeps what it held.
        return torch.float32 if is_gguf else "auto"
    return getattr(torch, name)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars or advice of transformers and accelerate on our stderr while it loads."""
    own = transformers.utils.logging
    verbosity, bars = own.get_verbosity(), own.is_progress_bar_enabled()
    splitter = logging.getLogger("accelerate")
    level = splitter.level
    own.set_verbosity_error()
    own.disable_progress_bar()
    splitter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        own.set_verbosity(verbosity)
        splitter.setLevel(level)
        if bars:
            own.enable_progress_bar()
