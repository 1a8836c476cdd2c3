"""Compile the kernels for GPUs without one, and say what they need: registers, stack, memory.

Usage: compiled_kernels.py CAPABILITY DTYPE ALIGNED, as in ``80 bf16 1``. In a process of its own,
because Triton asks when it is imported whether kernels are to be interpreted.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from klcli.measure.kernels import gpu, gpu_rows

POINTERS = {"targets": "*i64", "found": "*fp64"}


def compiled(kernel: Any, capability: int, dtype: str, aligned: bool) -> bytes:
    """The machine code of a kernel for one compute capability."""
    names = kernel.arg_names
    types = {name: POINTERS.get(name, "i32") for name in names}
    types |= {name: f"*{dtype}" for name in ("p", "q", "logits") if name in names}
    constants = {"GROUP": 8 * gpu.LOAD_BYTES // int(dtype[-2:]), "ALIGNED": aligned}
    types |= dict.fromkeys(constants, "constexpr")
    sixteenfold = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if types[name].startswith("*") or (aligned and types[name] == "i32")
    }
    source = ASTSource(kernel, types, constants, sixteenfold)
    options = {"num_warps": gpu_rows.WARPS, "enable_fp_fusion": True}
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return bytes(result.asm["cubin"])


def resources(code: bytes) -> dict[str, int]:
    """What machine code needs, by the names of cuobjdump."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        said = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", said)}


if __name__ == "__main__":
    capability, dtype, aligned = int(sys.argv[1]), sys.argv[2], bool(int(sys.argv[3]))
    needs = {
        kernel.__name__: resources(compiled(kernel, capability, dtype, aligned))
        for kernel in (gpu_rows.predict_row, gpu_rows.compare_row)
    }
    json.dump(needs, sys.stdout)
