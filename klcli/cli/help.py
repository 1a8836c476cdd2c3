"""Help in sections: examples first, then the common options; ``--help-all`` has all of them."""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import click

from klcli.choices import choices_of

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

SECTIONS = ("Models", "Data", "Text", "Memory", "Gates", "Output", "Long runs", "Options")
"""The sections of the help of a command, in order. Options that name none come last."""
OPTION_CELLS = 23
"""How far options stand out to the left of what they do, at most."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the help has an option, and whether it is common."""

    section: str
    common: bool


_places: "WeakKeyDictionary[click.Parameter, Place]" = WeakKeyDictionary()
_SOMEWHERE = Place(SECTIONS[-1], common=True)


def one_of(words: Any) -> click.Choice[str]:
    """The words of a ``Literal`` as the type of an option."""
    return click.Choice(choices_of(words))


def several(*decorators: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """Several options as one decorator, shown in the order in which they are written."""

    def decorate(command: Decorated) -> Decorated:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def section(
    name: str, *decorators: Callable[[Decorated], Decorated], common: Sequence[str] = ()
) -> Callable[[Decorated], Decorated]:
    """Several options that stand in one section of the help.

    ``common`` are the names of those that ``--help`` shows, as Python has them.
    """

    def decorate(command: Decorated) -> Decorated:
        before = len(_parameters_of(command))
        command = several(*decorators)(command)
        for parameter in _parameters_of(command)[before:]:
            _places[parameter] = Place(name, parameter.name in common)
        return command

    return decorate


def _parameters_of(command: Callable[..., Any]) -> list[click.Parameter]:
    """What decorators have given to a command that is not made yet; click keeps it so."""
    return list(getattr(command, "__click_params__", ()))


class Command(click.Command):
    """A command whose help has examples, sections and, with ``--help-all``, all options."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._help_all = _help_all()

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options, with ``--help-all``, which is shown if ``--help`` leaves any out."""
        own = super().get_params(ctx)
        self._help_all.hidden = all(_place_of(one).common for one in own)
        return [*own[:-1], self._help_all, *own[-1:]]

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What the command does, commands to copy, and what its arguments are."""
        _write_help_text(formatter, self.help or "")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, section by section."""
        everything = bool(ctx.meta.get(_EVERYTHING))
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        row = _row if everything else _short_row
        listed = {
            one: row(one, ctx)
            for one in options
            if not one.hidden and (everything or _place_of(one).common)
        }
        cells = max(len(name) for name, _ in listed.values() if len(name) <= OPTION_CELLS)
        for title in SECTIONS:
            rows = [
                (name.ljust(cells), what)
                for one, (name, what) in listed.items()
                if _place_of(one).section == title
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=cells)


class Group(click.Group):
    """Commands, listed in the order in which they are written, each with its whole first line."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of use."""
        return list(self.commands)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What the program does, and commands to copy."""
        _write_help_text(formatter, self.help or "")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands, and what each does."""
        rows = [(name, _paragraphs(one.help or "")[0]) for name, one in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


_EVERYTHING = "klcli.help_all"


def _help_all() -> click.Option:
    def show(ctx: click.Context, _: click.Parameter, given: bool) -> None:
        if given and not ctx.resilient_parsing:
            ctx.meta[_EVERYTHING] = True
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()

    return click.Option(
        ["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show all options, and all that they do.",
    )


def _place_of(parameter: click.Parameter) -> Place:
    return _places.get(parameter, _SOMEWHERE)


def _row(option: click.Option, ctx: click.Context) -> tuple[str, str]:
    """An option and all that it does."""
    return option.get_help_record(ctx) or ("", "")


def _short_row(option: click.Option, ctx: click.Context) -> tuple[str, str]:
    """An option and the gist of what it does, with its choices and its default."""
    name, _ = _row(option, ctx)
    what = _gist(option.help or "")
    if isinstance(option.type, click.Choice) and len(name) > OPTION_CELLS:
        name = f"{option.opts[0]} {option.opts[0].rpartition('-')[2].upper()}"
        if ":" not in what and not what.startswith("--"):
            what = f"{what.removesuffix('.')}: {', '.join(option.type.choices)}."
    if option.show_default:
        what += f"  [default: {option.default}]"
    return name, what


def _gist(text: str) -> str:
    """The first sentence, as far as a semicolon."""
    first = re.split(r"(?<=\.)\s+|  \[|;", text, maxsplit=1)[0]
    return f"{first.removesuffix('.')}."


def _paragraphs(text: str) -> list[str]:
    return [one for one in re.split(r"\n\s*\n", inspect.cleandoc(text)) if one]


def _write_help_text(formatter: click.HelpFormatter, text: str) -> None:
    title, *others = _paragraphs(text)
    _write_text(formatter, title)
    for paragraph in others:
        if paragraph.startswith("\b"):
            with formatter.section("Examples"):
                for line in paragraph.splitlines()[1:]:
                    _write_command(formatter, line.strip())
        else:
            _write_text(formatter, paragraph)


def _write_text(formatter: click.HelpFormatter, text: str) -> None:
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text(" ".join(text.split()))


def _write_command(formatter: click.HelpFormatter, line: str) -> None:
    """A command to copy; one that is too long goes on in the next line, as a shell takes it."""
    for part in _continued(line, formatter.width - formatter.current_indent):
        formatter.write(f"{'':>{formatter.current_indent}}{part}\n")


def _continued(line: str, width: int) -> Iterator[str]:
    if len(line) <= width:
        yield line
        return
    first, *others = textwrap.wrap(
        line, width - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    for part in others:
        yield f"{first} \\"
        first = part
    yield first
