"""What the folder of a run holds: the names of its files, and what its manifest looks like."""

from typing import Any, get_args

from klcli.choices import RowKind
from klcli.storage import schema
from klcli.storage.manifest import (
    ENTRY,
    SPECIAL_IDS,
    TOKENIZER,
    FolderFormat,
    manifest_schema,
    model_schema,
)
from klcli.storage.schema import SchemaError

_PART = {
    "name": schema.name(r"part-\d{5}\.safetensors"),
    "padded_mass": schema.each(schema.number),
    "kinds": schema.each(schema.word(*get_args(RowKind))),
}
_MANIFEST = manifest_schema(
    {
        "request": schema.fields(
            {"windows": schema.sha256, "shard": schema.maybe(schema.name("[0-9]+/[0-9]+"))}
        ),
        "paired": schema.flag,
        "keep": schema.count,
        "vocabulary_size": schema.positive,
        "models": schema.each(model_schema("source")),
        "environment": schema.fields({"klcli": schema.text}),
        "notices": schema.items(schema.fields({"code": schema.text, "message": schema.text})),
        "names": schema.either(
            schema.fields({"tokenizer": SPECIAL_IDS}),
            schema.fields(
                {
                    "size": schema.positive,
                    "pieces": schema.each(schema.name("([0-9a-f]{2})*"), key=schema.name("[0-9]+")),
                }
            ),
        ),
        "parts": schema.items(schema.fields({**_PART, **ENTRY})),
    }
)


def _check_manifest(manifest: Any, where: str) -> None:
    """What its fields must look like; the parts have the names that they were written under."""
    _MANIFEST(manifest, where)
    for number, part in enumerate(manifest["parts"]):
        if part["name"] != part_name(number):
            raise SchemaError(f"part {number} has the name {part['name']}")
    roles = {"reference", "candidate"} if manifest["paired"] else {"model"}
    if set(manifest["models"]) != roles:
        raise SchemaError(f"models are {sorted(manifest['models'])} and should be {sorted(roles)}")
    if "tokenizer" in manifest["names"] and TOKENIZER not in manifest["files"]:
        raise SchemaError(f"files has no {TOKENIZER!r}")


def part_name(number: int) -> str:
    """The file of a part."""
    return f"part-{number:05}.safetensors"


VERSION, VERSION_WITH_PARTS = 1, 2
"""Version 2 is version 1 for texts of which parts are scored: see ``recording/format.py``."""

RUN = FolderFormat(
    name="klcli.run",
    versions=(VERSION, VERSION_WITH_PARTS),
    noun="run",
    own_files=r"part-\d{5}\.safetensors|report\.json\.tmp",
    schema=_check_manifest,
)
