"""Copies of a GGUF file whose matrices have another type."""

from pathlib import Path
from typing import Any

import gguf
from gguf import GGMLQuantizationType as Type
from gguf.gguf_writer import GGUFWriter


def copy_as(source: Path, target: Path, kind: Type) -> Path:
    """Write a model again, its matrices in one type and all other tensors in float32.

    Matrices go through float32: from another type they are dequantised first, as
    ``llama-quantize --allow-requantize`` does.
    """
    reader = gguf.GGUFReader(source)
    writer = GGUFWriter(target, _text(reader, "general.architecture"))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        _copy_field(writer, name, field)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values = values.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        if values.ndim < 2 or kind == Type.F32:
            writer.add_tensor(tensor.name, values.astype("float32"))
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _text(reader: Any, name: str) -> str:
    return str(reader.fields[name].contents())


def _copy_field(writer: Any, name: str, field: Any) -> None:
    kind = field.types[0]
    inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(name, field.contents(), kind, sub_type=inner)
