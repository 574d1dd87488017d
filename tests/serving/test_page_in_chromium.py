"""The page of `arlow demo` as people use it, in a real browser without a window."""

import contextlib
import os
import re
import shutil
import socket
import socketserver
import threading
import time
from types import SimpleNamespace

import pytest

from tests.serving.live import image_part, live, text_part
from tests.serving.test_bad_requests import gif
from tests.serving.test_server_bounds import until
from tests.serving.tiny_assistants import picture, text_assistant, vision_assistant

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium on the PATH", allow_module_level=True)
KEY = "a-key-of-the-tests"
expect = playwright.expect


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        with started.chromium.launch(executable_path=CHROMIUM, args=sandbox) as browser:
            yield browser


@pytest.fixture(scope="module")
def demo():
    with live(vision_assistant(), has_page=True) as running:
        yield running


@pytest.fixture
def visit(browser):
    """Opens the page as somebody new; what goes wrong in it fails the test."""
    wrong, contexts = [], []

    def open_page(running, *, is_locked=False, **settings):
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if "Content Security" in line.text else None)
        page.goto(running.server.url)
        expect(page.locator("#lock" if is_locked else "#ask")).to_be_visible()
        if not is_locked:
            expect(page.locator("#about")).not_to_have_text("…")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def image_file(name: str, data: bytes | None = None, kind: str = "image/png") -> dict:
    return {"name": name, "mimeType": kind, "buffer": picture(name.split(".")[0]) if data is None else data}


def show(page, *files) -> None:
    page.set_input_files("#files", list(files))
    expect(page.locator("#tray li")).to_have_count(len(files))


def options(page, **values) -> None:
    if not page.locator("#options").get_attribute("open"):
        page.locator("#options").evaluate("details => { details.open = true }")
    for name, value in values.items():
        page.fill(f"[name={name}]", str(value))


def answered(page, number: int = 1):
    """The answer of that number, once its maps are there."""
    answer = page.locator(".answer").nth(number - 1)
    expect(answer.locator(".scale")).to_be_visible(timeout=20_000)
    return answer


def expected_answer(running, *parts, **settings) -> str:
    """What the API answers."""
    status, answer = running.chat(list(parts), **{"max_tokens": 64, **settings})
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"].strip()


def drawn(answer) -> str:
    return answer.locator("canvas").first.evaluate("canvas => canvas.toDataURL()")


def test_an_image_is_captioned_and_each_word_shows_where_the_model_looked(demo, visit):
    page = visit(demo)
    show(page, image_file("red.png"))
    options(page, max_tokens=30, temperature=1.5, seed=4)
    page.click("#caption")
    answer = answered(page)
    expected = expected_answer(demo, image_part("red"), max_tokens=30, temperature=1.5, seed=4)
    assert answer.locator(".text").text_content() == expected
    assert re.search(r"first token after [\d.]+ s · \d+ ms a token · \d+ tokens", answer.locator(".note").inner_text())
    words = answer.locator(".word")
    assert words.count() > 2 and [words.nth(n).text_content() for n in range(words.count())] == expected.split()
    seen = []
    for number in (0, 1):
        words.nth(number).hover()
        expect(words.nth(number)).to_have_attribute("aria-pressed", "true")
        seen.append(drawn(answer))
        label = answer.locator("canvas").first.get_attribute("aria-label")
        assert f"“{words.nth(number).text_content()}”" in label
    assert seen[0] != seen[1]
    words.nth(1).focus()
    page.keyboard.press("ArrowLeft")
    expect(words.nth(0)).to_be_focused()
    assert drawn(answer) == seen[0]
    assert answer.locator(".word[tabindex='0']").count() == 1


def test_the_heat_has_the_colours_of_its_numbers(demo, visit):
    """In the colours of `arlow explain`, over a grey image."""
    page = visit(demo)
    show(page, image_file("blue.png"))
    page.click("#caption")
    answer = answered(page)
    messages = [{"role": "user", "content": [image_part("blue")]}]
    asked = {"model": "arlow", "messages": messages, "max_tokens": 64, "return_token_ids": True}
    ids = demo.ask("POST", "/v1/chat/completions", asked)[1]["choices"][0]["token_ids"]
    heat = demo.ask("POST", "/v1/heat", {"model": "arlow", "messages": messages, "token_ids": ids})[1]
    (view,) = heat["views"]
    word = heat["words"][0]
    answer.locator(".word").first.hover()
    middles = """(canvas, [rows, columns]) => {
        const context = canvas.getContext("2d"), found = [];
        for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
            const x = (column + .5) * canvas.width / columns, y = (row + .5) * canvas.height / rows;
            found.push([...context.getImageData(x, y, 1, 1).data]);
        }
        return found;
    }"""
    pixels = answer.locator("canvas").first.evaluate(middles, [view["rows"], view["columns"]])
    colours, share = heat["scale"]["colours"], heat["scale"]["colour_share"]
    for (red, green, blue, alpha), times in zip(pixels, word["heat"][0], strict=True):
        at = min(times / heat["scale"]["top"], 1) ** 0.5 * (len(colours) - 1)
        below = min(int(at), len(colours) - 2)
        ramp = [a + (b - a) * (at - below) for a, b in zip(colours[below], colours[below + 1], strict=True)]
        greys = [(value - share * own) / (1 - share) for value, own in zip((red, green, blue), ramp, strict=True)]
        # The middle of a place is smoothed with its neighbours a little: half a pixel of the view.
        assert alpha == 255 and max(greys) - min(greys) < 40 and min(greys) > -20 and max(greys) < 275


def test_questions_in_turns_about_several_images(demo, visit):
    page = visit(demo)
    page.click("text=red circle")
    page.set_input_files("#files", [image_file("green.png")])
    expect(page.locator("#tray li")).to_have_count(2)
    expect(page.locator("#question")).to_have_value("what color is the shape?")
    options(page, max_tokens=4)
    page.click("#send")
    first = answered(page)
    expect(first.locator("figcaption")).to_have_text([re.compile("image 1: .*%"), re.compile("image 2: .*%")])
    page.fill("#question", "<b>a</b> <img src=x>")
    page.keyboard.press("Enter")
    answered(page, 2)
    assert page.locator(".question").nth(1).inner_text() == "<b>a</b> <img src=x>"
    page.click("#anew")
    expect(page.locator(".answer")).to_have_count(0)
    expect(page.locator("#tray li")).to_have_count(2)
    page.locator("#tray .remove").first.click()
    options(page, max_tokens=10)
    page.fill("#question", "the cat")
    page.click("#send")
    answer = answered(page)
    expected = expected_answer(demo, image_part("green"), text_part("the cat"), max_tokens=10)
    assert answer.locator(".text").text_content() == expected


def test_images_are_dropped_and_pasted_anywhere(demo, visit):
    page = visit(demo)
    give = """([name, bytes, kind]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
        const settings = { bubbles: true, cancelable: true };
        const event = kind === "paste" ? new ClipboardEvent(kind, { ...settings, clipboardData: data })
            : new DragEvent(kind, { ...settings, dataTransfer: data });
        document.querySelector("main").dispatchEvent(event);
        return event.defaultPrevented;
    }"""
    page.evaluate("document.querySelector('main').dispatchEvent(new DragEvent('dragover', {bubbles: true}))")
    expect(page.locator("body")).to_have_class("dropping")
    image = list(picture("red"))
    assert page.evaluate(give, ["dropped.png", image, "drop"])  # else the browser would go to the file
    expect(page.locator("body")).not_to_have_class("dropping")
    page.evaluate(give, ["pasted.png", image, "paste"])
    expect(page.locator("#tray img")).to_have_count(2)
    assert [image.get_attribute("alt") for image in page.locator("#tray img").all()] == ["dropped.png", "pasted.png"]


def test_a_question_waits_until_its_images_are_read(demo, visit):
    page = visit(demo)
    options(page, max_tokens=5)
    page.fill("#question", "the cat")
    page.evaluate("""() => {
        const read = FileReader.prototype.readAsDataURL;
        FileReader.prototype.readAsDataURL = function (file) { window.goOn = () => read.call(this, file); };
    }""")
    page.set_input_files("#files", [image_file("red.png")])
    sent = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    page.focus("#question")
    page.keyboard.press("Enter")
    page.evaluate("goOn()")
    expect(page.locator("#tray li")).to_have_count(1)
    page.keyboard.press("Enter")
    expected = expected_answer(demo, image_part("red"), text_part("the cat"), max_tokens=5)
    assert answered(page).locator(".text").text_content() == expected
    assert [url.rpartition("/")[2] for url in sent] == ["completions", "heat"]


def test_what_the_server_refuses_stands_beside_the_image_and_the_rest_stays_usable(demo, visit):
    page = visit(demo)
    files = {
        "cut.png": (picture("red")[:100], "cut off"),
        "notes.txt": (b"once upon a time", "no image of a known format"),
        "empty.png": (b"", "empty"),
        "moving.gif": (gif(3), "the image is animated; send one frame of it"),
    }
    show(page, image_file("red.png"), *(image_file(name, data) for name, (data, _) in files.items()))
    for name, (_, sentence) in files.items():
        page.click("#caption")
        error = page.locator("#tray .error")
        expect(error).to_contain_text(f"{name}: ")
        expect(error).to_contain_text(sentence)
        assert "messages[" not in error.inner_text()
        page.click(f"[aria-label='Remove {name}']")
    options(page, top_p=7)
    page.click("#caption")
    expect(page.locator("label:has([name=top_p]) .error")).to_have_text("top_p is from 0 to 1, got 7")
    options(page, top_p="", max_tokens=5)
    page.click("#caption")
    answered(page)
    show(page, *[image_file("red.png")] * 9)
    page.click("#caption")
    expect(page.locator("#problem")).to_contain_text("images came, and a request may have 8; send fewer")
    expect(page.locator("#tray li")).to_have_count(9)


def test_two_users_at_once_get_what_each_gets_alone(demo, visit):
    pages = [visit(demo), visit(demo)]
    for page, colour in zip(pages, ("red", "blue"), strict=True):
        show(page, image_file(f"{colour}.png"))
        options(page, max_tokens=40)
    for page in pages:
        page.click("#caption")
    for page, colour in zip(pages, ("red", "blue"), strict=True):
        expected = expected_answer(demo, image_part(colour), max_tokens=40)
        assert answered(page).locator(".text").text_content() == expected


def test_stop_frees_the_slot_and_keeps_what_was_written(visit):
    slow = vision_assistant(max_position_embeddings=2048)
    slow.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    slow.stop_ids = frozenset()
    with live(slow, has_page=True) as running:
        page = visit(running)
        show(page, image_file("red.png"))
        options(page, max_tokens=100)
        page.click("#caption")
        expect(page.locator(".note").first).to_contain_text("6 tokens")  # as they come
        assert running.engine.load == (1, 0) and page.locator("#send").is_hidden()
        page.click("#stop")
        assert until(lambda: running.engine.load == (0, 0))
        answer = answered(page)
        assert "stopped" in answer.locator(".note").first.inner_text()
        assert len(answer.locator(".text").text_content()) > 3
        page.fill("#question", "and")
        expect(page.locator("#send")).to_be_enabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(demo, visit, scheme):
    size = {"width": 360, "height": 740}
    page = visit(demo, viewport=size, color_scheme=scheme, has_touch=True, is_mobile=True)
    show(page, image_file("red.png"), image_file("blue.png"))
    options(page, max_tokens=30)
    page.tap("#caption")
    answer = answered(page)
    answer.locator(".word").last.tap()
    expect(answer.locator(".word").last).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for button in ("#choose", "#caption", "#send", "#anew"):
        box = page.locator(button).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["height"] >= 32, button
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", paper)[:3])) / 3
    assert brightness > 200 if scheme == "light" else brightness < 50


def test_tiles_are_shown_as_the_whole_and_put_together(visit):
    with live(vision_assistant(transform={"max_tiles": 4}), has_page=True) as running:
        page = visit(running)
        show(page, image_file("red.png", picture("red", (120, 60))))
        options(page, max_tokens=12, temperature=1.5, seed=4)
        page.click("#caption")
        captions = answered(page).locator("figcaption")
        expect(captions).to_have_text([re.compile("image 1, the whole: "), re.compile("image 1, 1 x 2 tiles: ")])


def test_a_text_model_is_asked_without_images(visit):
    with live(text_assistant(), has_page=True) as running:
        page = visit(running)
        expect(page.locator("#about")).to_contain_text("it takes no images")
        assert page.locator("#choose, #caption, #welcome").evaluate_all("all => all.every(one => one.hidden)")
        options(page, max_tokens=8)
        page.fill("#question", "the cat sat")
        page.click("#send")
        expect(page.locator(".answer .note")).to_contain_text("8 tokens")
        expected = expected_answer(running, text_part("the cat sat"), max_tokens=8)
        assert page.locator(".answer .text").text_content() == expected
        assert page.locator(".answer canvas").count() == 0


def test_a_key_is_asked_for_and_kept_in_memory_alone(visit):
    with live(text_assistant(), api_key=KEY, has_page=True) as running:
        page = visit(running, is_locked=True)
        page.fill("#key", "some-other-key")
        page.click("text=Continue")
        expect(page.locator("#lock-problem")).to_contain_text("this is not the server's key")
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#lock")).to_be_hidden()
        options(page, max_tokens=4)
        page.fill("#question", "the cat")
        page.click("#send")
        expect(page.locator(".answer .note")).to_contain_text("4 tokens")
        kept = "[localStorage.length, sessionStorage.length, document.cookie.length, location.href.includes('key')]"
        assert page.evaluate(kept) == [0, 0, 0, False]
        page.reload()
        expect(page.locator("#lock")).to_be_visible()


def test_a_server_that_has_gone_is_told(visit):
    with live(text_assistant(), has_page=True) as running:
        page = visit(running)
    page.fill("#question", "the cat")
    page.click("#send")
    expect(page.locator("#problem")).to_contain_text("the server does not answer; see whether it still runs")
    expect(page.locator("#question")).to_have_value("the cat")


class Cutting(socketserver.BaseRequestHandler):
    """Passes on what a browser and the server say, and closes the connection within answers of one path."""

    def handle(self):
        path = b""

        def ask() -> None:
            nonlocal path
            while data := self.request.recv(2**16):
                path = data.split(b" ")[1] if data.startswith((b"GET ", b"POST ")) else path
                there.sendall(data)

        with socket.create_connection(("127.0.0.1", self.server.behind)) as there:
            threading.Thread(target=ask, daemon=True).start()
            left = 1500  # bytes: the head and some of the body
            while data := there.recv(2**16):
                if path == self.server.cut:
                    data, left = data[:left], left - len(data)
                self.request.sendall(data)
                if left <= 0:
                    return


@contextlib.contextmanager
def cutting(running, path: str):
    """A way to the server on which answers of `path` break off, until its `cut` is another."""
    socketserver.ThreadingTCPServer.daemon_threads = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Cutting) as way:
        way.behind, way.cut = running.port, path.encode()
        way.server = SimpleNamespace(url=f"http://127.0.0.1:{way.server_address[1]}")
        threading.Thread(target=way.serve_forever, daemon=True).start()
        yield way
        way.shutdown()


def test_an_answer_that_breaks_off_is_told_and_kept_for_the_next_question(demo, visit):
    with cutting(demo, "/v1/chat/completions") as way:
        page = visit(way)
        show(page, image_file("red.png"))
        options(page, max_tokens=30, temperature=1.5, seed=4)
        page.click("#caption")
        expect(page.locator(".answer .error")).to_have_text(
            "the answer broke off, as the server ended it or the network did"
        )
        half = answered(page).locator(".text").text_content()
        whole = expected_answer(demo, image_part("red"), max_tokens=30, temperature=1.5, seed=4)
        assert whole.startswith(half) and 0 < len(half) < len(whole)
        way.cut = b""
        page.fill("#question", "the cat")
        page.click("#send")
        sent = [{"role": "user", "content": [image_part("red")]}, {"role": "assistant", "content": half}]
        body = {"model": "arlow", "messages": [*sent, {"role": "user", "content": "the cat"}]}
        asked = {**body, "max_tokens": 30, "temperature": 1.5, "seed": 4}
        expected = demo.ask("POST", "/v1/chat/completions", asked)[1]["choices"][0]["message"]["content"]
        assert answered(page, 2).locator(".text").text_content() == expected.strip()
        assert page.locator(".cursor").count() == 0


def test_heat_maps_that_break_off_are_told(demo, visit):
    with cutting(demo, "/v1/heat") as way:
        page = visit(way)
        show(page, image_file("red.png"))
        options(page, max_tokens=5)
        page.click("#caption")
        expect(page.locator(".answer .note").last).to_contain_text("no heat maps: the answer broke off")


def test_another_site_cannot_use_the_server(demo, visit):
    """A page of another port is another site to a browser."""
    with live(text_assistant(), has_page=True) as other:
        page = visit(other)
        reach = """async ([url, kind]) => {
            const body = kind && JSON.stringify({model: "arlow", messages: [{role: "user", content: "the cat"}]});
            const settings = kind ? {method: "POST", headers: {"content-type": kind}, body} : {};
            try { return (await fetch(url, {mode: "cors", ...settings})).status } catch { return "blocked" }
        }"""
        # The page's own policy would already keep it from asking; a page of a site that wants to has none.
        page.route("**/*", lambda route: route.fulfill(body="<p>another site</p>", content_type="text/html"), times=1)
        page.goto(other.server.url)
        before = demo.engine.load
        for path, kind in (("/v1/models", ""), ("/v1/chat/completions", "application/json"),
                           ("/v1/chat/completions", "text/plain")):  # fmt: skip
            assert page.evaluate(reach, [demo.server.url + path, kind]) == "blocked"
        assert demo.engine.load == before
