"""What the HTML pages share: their templates, and texts that are bounded and can be written."""

from pathlib import Path

import jinja2

from .files import write_atomically

MAX_CHARACTERS = 4000  # of a shown text; a longer one is cut, and says so


def page_template(name: str) -> jinja2.Template:
    """Return a template of `templates/`; what it is given is escaped, and a name that is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value, digits=3: "\N{EN DASH}" if value is None else f"{value:.{digits}f}"
    environment.filters["signed"] = signed
    environment.filters["duration"] = duration
    return environment.get_template(name)


def write_page(path: Path, page: str) -> Path:
    """Write a page; an unpaired surrogate, which sampled text may contain, becomes a question mark."""
    data = page.encode("utf-8", "replace")
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
    return path


def duration(seconds: float) -> str:
    """Format a time in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def signed(value: float, digits: int = 3) -> str:
    """Write a difference with its sign."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def cut(text: str) -> str:
    """Bound a text for a page, and say so where it is longer."""
    dropped = len(text) - MAX_CHARACTERS
    return text if dropped <= 0 else f"{text[:MAX_CHARACTERS]}\n[… {dropped} more characters]"
