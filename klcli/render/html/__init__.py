"""The report as a page."""

from typing import TextIO

from klcli.judge.report import Report
from klcli.render.view import DEFAULT_VIEW, View


def render_html(report: Report, stream: TextIO, view: View = DEFAULT_VIEW) -> None:
    """Write the report as a page."""
    raise NotImplementedError
