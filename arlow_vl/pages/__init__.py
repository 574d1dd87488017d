"""Pages that are one HTML file: without scripts, links and network, with their images and charts inside.

`base.html` is the skeleton, whose blocks `title`, `style` and `body` a page fills; `base.css` holds the colours, the
fonts and the reset that all pages share.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def page_environment(*folders: Path, finalize: Callable[[Any], Any] | None = None) -> Environment:
    """Returns an environment that finds templates in these folders, then here.

    It escapes every value, and a name that a template uses and nobody has given raises. `finalize` is applied to each
    value before it is escaped.
    """
    return Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
