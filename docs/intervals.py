"""Keeps a number and its interval, `0.863 [0.855, 0.868]`, on one line of a page (a hook of mkdocs)."""

import re
from typing import Any

INTERVAL = re.compile(r"(?:[+-]?[\d.,]+ )?\[[+-]?[\d.,]+, [+-]?[\d.,]+\]")


def on_page_content(html: str, **_: Any) -> str:
    """Return a page with its intervals marked; css/pages.css does the rest."""
    return INTERVAL.sub(lambda found: f'<span class="interval">{found[0]}</span>', html)
