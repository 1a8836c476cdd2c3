"""Methods of quantisation: what transformers needs to run each, and where it runs."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors
import transformers

from klcli.errors import SourceError

OURS = "'klcli[quantised]'"
"""What pip is asked for where an extra of klcli brings the package."""


@dataclass(frozen=True, slots=True)
class Method:
    """What one ``quant_method`` needs.

    ``packages`` are names for pip, by the module that each brings. ``device`` is what it runs on
    where that is not a CPU, and ``refused`` says why transformers never reads such a checkpoint.
    """

    packages: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    refused: str = ""


METHODS: Mapping[str, Method] = {
    "aqlm": Method({"accelerate": "accelerate", "aqlm": "'aqlm[cpu]'"}),
    "auto-round": Method({"auto_round": "auto-round"}),
    "awq": Method({"accelerate": "accelerate", "gptqmodel": "gptqmodel"}),
    "bitnet": Method({"accelerate": OURS}),
    "bitsandbytes": Method({"accelerate": OURS, "bitsandbytes": OURS}),
    "compressed-tensors": Method({"compressed_tensors": OURS}),
    "eetq": Method(device="a GPU"),
    "fbgemm_fp8": Method(device="a GPU"),
    "fouroversix": Method({"fouroversix": "fouroversix"}),
    "fp8": Method({"accelerate": OURS}),
    "fp_quant": Method(device="a GPU"),
    "gptq": Method({"optimum": "optimum", "gptqmodel": "gptqmodel"}),
    "higgs": Method(device="a GPU"),
    "hqq": Method(refused="does not read checkpoints of it at present"),
    "metal": Method(device="an Apple GPU"),
    "mxfp4": Method({"accelerate": OURS}),
    "mxfp8": Method({"accelerate": OURS}),
    "nvfp4": Method(refused="does not read checkpoints of it at present"),
    "quanto": Method({"accelerate": OURS, "optimum.quanto": "optimum-quanto"}),
    "quark": Method({"quark": "amd-quark"}),
    "sinq": Method({"sinq": "sinq"}),
    "spqr": Method(device="a GPU"),
    "torchao": Method({"torchao": OURS}),
    "vptq": Method(device="a GPU"),
}
"""Every method that transformers knows and that asks for something, by its ``quant_method``."""

TORCHAO_KINDS: Mapping[str, Method] = {
    "Int4WeightOnlyConfig": Method({"torchao": OURS, "mslk": "mslk-cuda"}, device="a GPU"),
}
"""Kinds of torchao that need something else than torchao does, by the class of their config."""


def check_method(spec: str, config: Any, device: str) -> None:
    """Find a method of quantisation that cannot be run here, before the weights are read.

    Raises:
        SourceError: transformers does not know it, a package is missing, or it needs a GPU.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return
    name, method = _method_of(spec, settings)
    if method.refused:
        raise SourceError(
            f"{spec} is quantised with {name}, and transformers {transformers.__version__} "
            f"{method.refused}: give the model in another format"
        )
    if method.device and device.split(":")[0] == "cpu":
        raise SourceError(
            f"{spec} is quantised with {name}, which runs on {method.device} only, and the "
            "device is cpu: run it where there is one, or give the model in another format"
        )
    missing = [pip for module, pip in method.packages.items() if not _is_installed(module)]
    if missing:
        raise SourceError(
            f"{spec} is quantised with {name}: pip install {' '.join(dict.fromkeys(missing))} to "
            "run it"
        )


def _method_of(spec: str, settings: Any) -> tuple[str, Method]:
    """The method of a config, by its name and by what it needs."""
    name = _name_of(spec, settings)
    if name == "torchao":
        text = str(settings if isinstance(settings, dict) else settings.to_dict())
        for kind, method in TORCHAO_KINDS.items():
            if kind in text:
                return f"{name} ({kind})", method
    return name, METHODS.get(name, Method())


def _name_of(spec: str, settings: Any) -> str:
    from transformers.quantizers import auto

    given = settings.to_dict() if hasattr(settings, "to_dict") else settings
    name = given.get("quant_method") if isinstance(given, dict) else None
    if isinstance(given, dict) and (given.get("load_in_4bit") or given.get("load_in_8bit")):
        return "bitsandbytes"  # older files of it name no method
    if not isinstance(name, str):
        raise SourceError(
            f"the quantization_config of {spec} names no quant_method: restore config.json"
        )
    if name not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        known = {one.removesuffix("_4bit").removesuffix("_8bit") for one in _known(auto)}
        raise SourceError(
            f"{spec} is quantised by {name!r}, which transformers does not know "
            f"and would pass over; it knows {', '.join(sorted(known))}"
        )
    return str(name)


def _known(auto: Any) -> Collection[str]:
    names: Collection[str] = auto.AUTO_QUANTIZATION_CONFIG_MAPPING
    return names


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it lies in
        return False


def check_codes(spec: str, config: Any, files: Collection[Path]) -> None:
    """Find weights that were saved unpacked beside a config that still says how they were packed.

    Raises:
        SourceError: the config names bitsandbytes, and no weight is of its codes.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None or _name_of(spec, settings) != "bitsandbytes":
        return
    if not files or any(path.suffix != ".safetensors" for path in files):
        return
    if not any(name.endswith((".SCB", ".absmax")) for path in files for name in _names(path)):
        raise SourceError(
            f"config.json of {spec} says that it is quantised with bitsandbytes, and its weights "
            "are not: take quantization_config out of config.json"
        )


def _names(path: Path) -> list[str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return list(file.keys())
