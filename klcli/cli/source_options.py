"""Options that say how models, recordings and logit files are opened."""

from collections.abc import Callable
from typing import Any

import click

from klcli.choices import DtypeName, Engine, FlashAttention, KvCacheType, TaskChoice, ValueChoice
from klcli.cli.help import Decorated, one_of, section, several


def _sided(name: str, what: str, **settings: Any) -> Callable[[Decorated], Decorated]:
    """An option for both sides, and one for each."""
    option = name.replace("_", "-")
    return several(
        click.option(f"--{option}", help=what, **settings),
        *(
            click.option(f"--{side}-{option}", help=f"--{option} for the {side}.",
                         **{k: v for k, v in settings.items() if k in ("type", "metavar")})
            for side in ("reference", "candidate")
        ),
    )  # fmt: skip


def _source_settings() -> dict[str, tuple[str, dict[str, Any]]]:
    return {
        "dtype": (
            "Number format of the weights; auto is the checkpoint's, float32 for GGUF.",
            {"type": one_of(DtypeName), "default": "auto", "show_default": True},
        ),
        "device": (
            "Where the model runs: auto, cpu, cuda, cuda:1, mps. auto is a GPU if there is one; a "
            "model too large for it is split over all GPUs and the machine's memory.",
            {"metavar": "DEVICE", "default": "auto", "show_default": True},
        ),
        "adapter": (
            "Folder of an adapter (LoRA, DoRA, IA³) to put on the model. Needs peft.",
            {"type": click.Path(exists=True, file_okay=False), "metavar": "DIR"},
        ),
        "revision": ("Branch, tag or commit of a Hub model.", {"metavar": "REVISION"}),
        "values": (
            "What the numbers of a logit file are; auto goes by the array's name.",
            {"type": one_of(ValueChoice), "default": "auto", "show_default": True},
        ),
        "token_ids": (
            "Token ids of a logit file that has none in it (.npy).",
            {"type": click.Path(exists=True, dir_okay=False), "metavar": "FILE"},
        ),
    }


_tokenizer_option = click.option(
    "--tokenizer",
    type=click.Path(),
    metavar="MODEL",
    help="Model or folder whose tokenizer gives the words of a logit file.",
)

_compile_option = click.option(
    "--compile",
    is_flag=True,
    help="Compile the blocks of models with torch.compile, which takes a while: for long runs. It "
    "changes how 16-bit models round, by about as much as they differ from float32. Needs a C++ "
    "compiler on a CPU, and Triton on a GPU.",
)

_task_option = click.option(
    "--task",
    type=one_of(TaskChoice),
    default="auto",
    show_default=True,
    help="What models predict: the next token, or a hidden one. auto goes by the config.",
)

OF_FILES = ("values", "token_ids")
"""Settings of logit files."""


ENGINE: dict[str, tuple[str, dict[str, Any]]] = {
    "engine": (
        "What runs a .gguf file: transformers turns its weights into float32, llama.cpp runs it as "
        "it is served. Needs klcli[llama.cpp].",
        {"type": one_of(Engine), "default": "transformers", "show_default": True},
    ),
    "kv_cache_type": (
        "Number format of the cache of llama.cpp.",
        {"type": one_of(KvCacheType), "default": "f16", "show_default": True},
    ),
    "flash_attention": (
        "Whether llama.cpp uses flash attention.",
        {"type": one_of(FlashAttention), "default": "auto", "show_default": True},
    ),
    "threads": (
        "Threads of llama.cpp.  [default: those of torch]",
        {"type": click.IntRange(min=1), "metavar": "N"},
    ),
    "gpu_layers": (
        "Layers that llama.cpp puts on a GPU.  [default: its own]",
        {"type": click.IntRange(min=0), "metavar": "N"},
    ),
}
"""The settings of llama.cpp, each with what it does."""


def engine_options(*, sided: bool) -> Callable[[Decorated], Decorated]:
    """What runs a GGUF file, and how; for each side where there are two."""
    decorators = [
        _sided(name, what, **settings)
        if sided
        else click.option(f"--{name.replace('_', '-')}", help=what, **settings)
        for name, (what, settings) in ENGINE.items()
    ]
    return section("Models", *decorators, common=("candidate_engine" if sided else "engine",))


def source_options(
    *, sided: bool, inside: bool = False, task: bool = True
) -> Callable[[Decorated], Decorated]:
    """How sources are opened.

    ``sided`` where there are two, ``inside`` where they must be models that are looked into: not
    logit files, and not compiled. ``task`` where they may be masked models too.
    """
    decorators = []
    for name, (what, settings) in _source_settings().items():
        if inside and name in OF_FILES:
            continue
        if sided:
            decorators.append(_sided(name, what, **settings))
        else:
            decorators.append(click.option(f"--{name.replace('_', '-')}", help=what, **settings))
    models = section(
        "Models",
        *((_task_option,) if task else ()),
        *decorators,
        *(() if inside else (_tokenizer_option,)),
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Run Python code that comes with a model. Only for models you trust.",
        ),
        click.option(
            "--allow-unused-weights",
            is_flag=True,
            help="Run a model although its checkpoint has weights that it does not take.",
        ),
        click.option(
            "--allow-other-architecture",
            is_flag=True,
            help="Run as a language model what was saved as something else, such as a classifier.",
        ),
        *(() if inside else (_compile_option,)),
        common=("dtype", "candidate_dtype", "device", "adapter"),
    )
    return several(models, _memory_options)


_memory_options = section(
    "Memory",
    click.option(
        "--batch-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Tokens in one forward pass; fewer need less memory.  [default: 2048 on a CPU, "
        "16384 on a GPU]",
    ),
    common=("batch_tokens",),
)
