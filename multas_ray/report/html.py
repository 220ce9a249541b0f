"""A report as one HTML file that opens without a network; its layout is `page.html.j2`."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined

from multas_ray.report.tables import Rows, table_text

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters other than tab and line feed."""


@dataclass(frozen=True)
class Page:
    """A self-contained page: no script, no link, images inline, all text escaped.

    Its sections have headings, and come in the order of the fields.
    """

    title: str
    intro: str = ""
    """Text under the title; its line breaks are kept."""
    tables: Mapping[str, Rows] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    """PNGs, shrunk to the page's width."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """PNGs in their own size; a wide one scrolls."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Preformatted texts, such as a configuration."""

    def html(self) -> str:
        """Render the page."""
        html = TEMPLATES.get_template("page.html.j2").render(page=self)
        # HTML cannot represent control characters; a terminal that shows the file would obey them.
        return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), html)


TEMPLATES = Environment(
    loader=PackageLoader("multas_ray.report", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters["base64"] = lambda png: base64.b64encode(png).decode()
TEMPLATES.filters["table_text"] = table_text
