"""The page of `arlow demo` as it is sent, and who may use it."""

import re
from importlib.resources import files

import pytest

from arlow_vl.serving.page.files import NAMES, page_files
from tests.serving.live import live
from tests.serving.tiny_assistants import text_assistant

KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def assistant():
    return text_assistant()


@pytest.fixture(scope="module")
def demo(assistant):
    with live(assistant, has_page=True) as running:
        yield running


def test_every_file_that_the_page_asks_for_is_served_with_its_type(demo):
    for name in ("", *NAMES):
        status, headers, body = demo.fetch("GET", f"/{name}")
        kind = {"css": "text/css", "js": "text/javascript"}.get(name.rpartition(".")[2], "text/html")
        assert status == 200 and headers["content-type"] == f"{kind}; charset=utf-8"
        assert body == files("arlow_vl.serving.page").joinpath(name or "index.html").read_bytes()
    asked = re.findall(
        r'(?:href|src|from) ?=? ?"(?:\./)?([\w.]+)"', "".join(f.body.decode() for f in page_files().values())
    )
    assert set(asked) == set(NAMES)


def test_the_page_may_load_nothing_from_elsewhere_run_no_text_and_stand_in_no_frame(demo):
    _, headers, body = demo.fetch("GET", "/")
    policy = dict(part.split(maxsplit=1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'" and "unsafe" not in str(policy)
    assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
    page = body.decode()
    assert not re.search(
        r"<script(?! type=\"module\" src=\"page.js\"></script>)|<style| style=| on\w+=|https?://(?!www.w3.org/2000/svg)",
        page,
    )
    sources = "".join(file.body.decode() for path, file in page_files().items() if path.endswith(".js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", sources)


def test_all_that_the_server_says_is_of_the_type_that_it_names(demo):
    for path in ("/health", "/settings", "/nowhere"):
        assert demo.fetch("GET", path)[1]["x-content-type-options"] == "nosniff"


def test_the_page_is_told_what_the_server_takes(demo):
    status, told = demo.ask("GET", "/settings")
    assert status == 200
    assert told == {"model": "arlow", "sees_images": False, "max_images": 8, "max_tokens": 100, "max_body": 32 * 2**20}


def test_without_a_page_there_is_nothing_at_its_addresses(assistant):
    with live(assistant) as running:
        assert [running.fetch("GET", path)[0] for path in ("/", "/page.js", "/settings")] == [404] * 3


def test_the_page_itself_needs_no_key_and_all_that_it_asks_for_does(assistant):
    with live(assistant, api_key=KEY, has_page=True) as running:
        assert running.fetch("GET", "/")[0] == running.fetch("GET", "/page.js")[0] == 200
        status, told = running.ask("GET", "/settings")
        assert status == 401 and "the API key is wrong or missing" in told["error"]["message"]
        assert running.ask("GET", "/settings", Authorization=f"Bearer {KEY}")[0] == 200
        # With a key, which no other page knows, a proxy may change names.
        assert running.fetch("GET", "/", Host="demo.example", Origin="https://other.example")[0] == 200


@pytest.mark.parametrize("has_page", [False, True])
def test_without_a_key_no_other_site_uses_the_server(assistant, has_page):
    """Neither by a name of its own for this machine's address, nor from a page of its own."""
    with live(assistant, has_page=has_page) as running:
        own = f"127.0.0.1:{running.port}"
        body = {"model": "arlow", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 2}
        for headers in ({"Host": "rebound.example"}, {"Host": f"rebound.example:{running.port}"}):
            status, told = running.ask("POST", "/v1/chat/completions", body, **headers)
            assert status == 403 and "answers to localhost alone" in told["error"]["message"]
        for origin in (
            "https://evil.example",
            "null",
            f"http://localhost:{running.port + 1}",
            f"http://{own}.evil.example",
        ):
            for method, path, sent in (("POST", "/v1/chat/completions", body), ("GET", "/v1/models", None)):
                status, told = running.ask(method, path, sent, Host=own, Origin=origin)
                assert status == 403 and "to no page of another site" in told["error"]["message"], (origin, told)
        for origin in (f"http://{own}", f"HTTP://{own}"):
            assert running.ask("POST", "/v1/chat/completions", body, Host=own, Origin=origin)[0] == 200
        # Without being asked first, a browser sends another site's forms and texts, but no JSON.
        kind = "text/plain"
        assert running.ask("POST", "/v1/chat/completions", b"{}", Content_Type=kind)[0] == 415
        status, headers, _ = running.fetch("OPTIONS", "/v1/chat/completions", Host=own)
        assert status == 405 and not any(name.startswith("access-control") for name in headers)
