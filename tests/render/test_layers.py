import io
import json
import math
import re

import pytest

from klcli.errors import Notice
from klcli.judge.layers import Layer, Layers, Place, Rise
from klcli.render.layers import PRINTERS, render_terminal, sentences
from klcli.render.terminal import StreamConsole
from klcli.render.text import visible
from klcli.render.view import DEFAULT_VIEW
from tests.render import golden
from tests.render.reports import HOSTILE
from tests.render.test_markdown import inline_parts


def layer(name: str, error: float, token: str = " cat", *, allowed: float = 1e-5) -> Layer:
    number = re.search(r"\d+", name)
    return Layer(
        layer=name,
        module=f"model.layers.{number[0]}" if number else None,
        error=error,
        token_error=error / 2,
        cosine=1 - error / 10,
        noise=1e-7,
        allowed=allowed,
        is_apart=error > allowed,
        largest=Place(error=3 * error, index=7, document="a", position=8, token=token, token_id=5),
        not_finite=0,
    )


def layers(*parts: Layer, name: str = "model", warning: str | None = None) -> Layers:
    model = {"source": name, "dtype": "float32", "device": "cpu"}
    return Layers(
        models={"reference": model, "candidate": model},
        protocol={"name": "rolling", "context": 128, "limit": None},
        environment={},
        counts={"tokens": 2048, "tokens_in_all": 3584, "windows": 16, "windows_in_all": 28},
        corpora=["corpus.txt"],
        layers=parts,
        first_apart=next((part.layer for part in parts if part.is_apart), None),
        rise=Rise(layer="block 1", before=2e-7, after=0.25) if parts[-1].is_apart else None,
        warnings=[Notice(code="depths_differ", message=warning)] if warning else [],
    )


FOUND = layers(
    layer("embedding", 0.0),
    layer("block 0", 2e-7),
    layer("block 1", 0.25),
    layer("final", 0.2),
    layer("logits", 0.1234),
    warning="a has 3 blocks and b 2",
)


def on_terminal(found: Layers, width: int = 80, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding, newline="")
    render_terminal(found, StreamConsole(file=stream, width=width, force_terminal=False))
    stream.seek(0)
    return stream.read()


def as_text(found: Layers, format_: str) -> str:
    stream = io.StringIO()
    PRINTERS[format_](found, stream, DEFAULT_VIEW)  # type: ignore[index]
    return stream.getvalue()


def test_a_table_looks_as_it_should() -> None:
    golden.check("layers.txt", on_terminal(FOUND))


def test_a_console_with_less_than_unicode_gets_the_same_columns() -> None:
    plain, full = (on_terminal(FOUND, encoding=one).split("\n") for one in ("ascii", "utf-8"))
    head = next(place for place, line in enumerate(full) if line.startswith("layer"))
    assert [len(line) for line in plain[head : head + 7]] == [
        len(line) for line in full[head : head + 7]
    ]
    assert set(plain[head + 1]) == {"-"}


def test_a_page_looks_as_it_should() -> None:
    golden.check("layers.md", as_text(FOUND, "markdown"))


def test_the_table_says_where_models_part_in_a_narrow_terminal() -> None:
    assert max(map(len, on_terminal(FOUND, 40).splitlines())) <= 40
    assert "first" in on_terminal(FOUND, 40)


def test_models_that_do_not_part_are_said_not_to() -> None:
    (said,) = sentences(layers(layer("embedding", 0.0), layer("block 0", 1e-6)))
    assert "part nowhere" in said


def test_the_end_of_a_model_has_a_name_in_a_sentence() -> None:
    assert "part at the logits" in sentences(layers(layer("logits", 0.5)))[0]
    assert "part at the final state" in sentences(layers(layer("final", 0.5)))[0]


def test_json_has_no_number_that_json_has_not() -> None:
    found = layers(layer("block 0", math.inf), layer("block 1", math.nan))
    data = json.loads(as_text(found, "json"))
    assert [one["error"] for one in data["layers"]] == ["inf", None]
    assert (data["format"], data["format_version"]) == ("klcli.layers", 1)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_shown_and_does_nothing(text: str) -> None:
    found = layers(layer("block 1", 0.25, token=text), name=text, warning=text)
    shown = on_terminal(found)
    assert visible(shown.replace("\n", ""), keep_spaces=True) == shown.replace("\n", "")
    assert as_text(found, "json").isascii()
    page = as_text(found, "markdown")
    row = next(line for line in page.splitlines() if "| block 1" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 10
    assert {part.type for part in inline_parts(page)} <= {
        "text",
        "text_special",
        "code_inline",
        "softbreak",
    }
