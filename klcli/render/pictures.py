"""Pictures in files of their own: how the KL, or of one model the NLL, is distributed."""

from typing import BinaryIO

from klcli.judge.report import Report
from klcli.render.view import DEFAULT_VIEW, View


def render_svg(report: Report, stream: BinaryIO, _view: View = DEFAULT_VIEW) -> None:
    """Write the distribution as SVG. It needs ``klcli[html]``.

    Raises:
        KlcliError: the report was written by a klcli that kept no distribution.
    """
    from klcli.render.charts import distribution

    stream.write(distribution(report).encode())


def render_png(report: Report, stream: BinaryIO, _view: View = DEFAULT_VIEW) -> None:
    """Write the distribution as PNG. It needs ``klcli[html]``.

    Raises:
        KlcliError: the report was written by a klcli that kept no distribution.
    """
    from klcli.render.charts import distribution
    from klcli.render.drawing import png_of

    stream.write(png_of(distribution(report)))
