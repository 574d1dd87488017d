"""Files of the page of `arlow demo`, with their content types and headers."""

from dataclasses import dataclass
from importlib.resources import files

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
NAMES = ("page.css", "page.js", "answers.js", "asking.js", "heat.js", "examples.js")
# Nothing is loaded from elsewhere, nothing in the page's text is run, and no other page may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class PageFile:
    """A file as it is sent."""

    body: bytes
    content_type: str
    headers: dict[str, str]


def page_files() -> dict[str, PageFile]:
    """Returns the files by their path on the server."""
    return {"/": _read("index.html"), **{f"/{name}": _read(name) for name in NAMES}}


def _read(name: str) -> PageFile:
    body = files("arlow_vl.serving.page").joinpath(name).read_bytes()
    return PageFile(body, f"{TYPES[name.rpartition('.')[2]]}; charset=utf-8", HEADERS)
