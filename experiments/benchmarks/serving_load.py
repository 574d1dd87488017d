"""Good, bad and hostile requests to `arlow serve` for some minutes: what it answers, and how its memory goes.

Run it with `python -m experiments.benchmarks.serving_load --minutes 10`. The server is a process of its own with a
small model that is made here. Eight clients ask in turn about text and images, read streams or drop them, ask for heat
maps, and send what no server should fall over: bodies that are too large, too slow, deep, cut or no HTTP, images that
are broken, huge or none, options that do not exist. It fails if a request is answered with 500, or if the server has
gone.
"""

import argparse
import base64
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from arlow_vl import ArlowConfig, ArlowVisionConfig, ArlowVLConfig, ArlowVLForConditionalGeneration
from arlow_vl.models.arlow.tokenization_arlow_fast import train_tokenizer
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from experiments.benchmarks.measure import machine_line, report, table

CLIENTS = 8
GOAL_OF_GROWTH = 0.05  # of the memory, from the second quarter of the time to the last
WORDS = "the cat sat on a mat and saw one big red dog run over green hills while small birds sing in old trees".split()


def write_model(folder: Path) -> None:
    """A small vision-language model of random weights, with its processor."""
    torch.manual_seed(0)
    dice = random.Random(0)
    texts = [" ".join(dice.choices(WORDS, k=20)) + "." for _ in range(50)]
    tokenizer = train_tokenizer(texts, vocab_size=300)
    text = ArlowConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        cross_attention_interval=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    vision = ArlowVisionConfig(timm_name="test_vit", image_size=64)
    model = ArlowVLForConditionalGeneration(ArlowVLConfig(text_config=text, vision_config=vision))
    model.config.vision_config.transform = model.model.vision.image_transform().to_dict()
    model.save_pretrained(folder)
    ArlowProcessor(ArlowImageProcessor.of_model(model.config), tokenizer).save_pretrained(folder)


def start_server(folder: Path, *options: str) -> tuple[subprocess.Popen, int]:
    """`arlow serve` on a free port, once it answers, and the port."""
    command = [sys.executable, "-c", "from arlow_vl.cli import run; run()", "serve", str(folder), "--port", "0"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        [*command, "--device", "cpu", *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None and server.stderr is not None
    found = re.search(r":(\d+)/v1", server.stdout.readline())
    if found is None:
        raise RuntimeError(f"the server did not start: {server.stderr.read()}")
    return server, int(found[1])


def drawn_image(dice: random.Random) -> bytes:
    """One of forty images, so that what the server remembers is full early."""
    number = dice.randrange(40)
    image = Image.new("RGB", (40 + number, 60), (number * 6, 90, 200 - number * 5))
    buffer = io.BytesIO()
    image.save(buffer, ("PNG", "JPEG", "WEBP")[number % 3])
    return buffer.getvalue()


def url_of(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def huge_png() -> bytes:
    """A header of 100 megapixels over a few bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = (10_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def chat_body(content: Any, **options: Any) -> bytes:
    return json.dumps({"model": "arlow", "messages": [{"role": "user", "content": content}], **options}).encode()


def image_content(*urls: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*parts, {"type": "text", "text": "what is it?"}]


def good_body(dice: random.Random) -> bytes:
    text = " ".join(dice.choices(WORDS, k=dice.randint(1, 12)))
    urls = [url_of(drawn_image(dice)) for _ in range(dice.choice((0, 1, 1, 2)))]
    drawn = {"temperature": dice.random(), "seed": dice.randrange(99)} if dice.random() < 0.3 else {}
    return chat_body(image_content(*urls) if urls else text, max_tokens=dice.randint(1, 30), **drawn)


def bad_bodies() -> list[bytes]:
    """Each is refused with a 4xx."""
    image = drawn_image(random.Random(0))
    cut, noise = url_of(image[:60]), url_of(random.Random(1).randbytes(500))
    return [
        b"", b"{", b"[]", b"null", b"[" * 100_000, b"[" + b"[]," * 600_000 + b"[]]", b"\xff\xfe", b'{"seed": NaN}',
        chat_body("the cat " * 130_000), chat_body("\ud83d"), chat_body(None), chat_body([]),
        chat_body([{"type": "x"}]), chat_body("a", n=2), chat_body("a", colour=1), chat_body("a", max_tokens=10**30),
        chat_body("a", temperature=-1),
        chat_body(image_content(cut)), chat_body(image_content(noise)), chat_body(image_content(url_of(huge_png()))),
        chat_body(image_content("http://127.0.0.1:1/a.png")), chat_body(image_content("file:///etc/passwd")),
        chat_body(image_content("/etc/passwd")), chat_body(image_content(*[url_of(image)] * 10)),
        chat_body(image_content("data:image/png;base64,*")), b"x" * 3 * 2**20,
    ]  # fmt: skip


@dataclass
class Load:
    """Results of a load."""

    statuses: Counter = field(default_factory=Counter)
    """By kind of request and status; 0 where the connection was cut, as some of ours are."""
    rss: list[float] = field(default_factory=list)
    """MiB of the server, twice a second."""
    seconds: float = 0

    def count(self, kind: str, *statuses: int) -> int:
        return sum(n for (of, status), n in self.statuses.items() if of == kind and status in statuses)

    @property
    def growth(self) -> float:
        """Growth of the median memory from the second quarter of the time to the last."""
        quarter = len(self.rss) // 4
        early, late = statistics.median(self.rss[quarter : 2 * quarter]), statistics.median(self.rss[-quarter:])
        return late / early - 1


def run_load(server: subprocess.Popen, port: int, seconds: float) -> Load:
    load, end, lock = Load(), time.monotonic() + seconds, threading.Lock()
    bad = bad_bodies()

    def client(number: int) -> None:
        dice = random.Random(number)
        while time.monotonic() < end and server.poll() is None:
            kind = dice.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
            try:
                status = KINDS[kind][1](port, dice, bad)
            except (OSError, http.client.HTTPException):
                status = 0
            with lock:
                load.statuses[kind, status] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and server.poll() is None:
        load.rss.append(resident_mib(server.pid))
        time.sleep(0.5)
    load.seconds = time.monotonic() - start
    return load


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def ask(port: int, body: bytes, *, path: str = "/v1/chat/completions", read_all: bool = True) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read(None if read_all else 40)
        return answer.status
    finally:
        connection.close()


def good(port: int, dice: random.Random, _: list[bytes]) -> int:
    return ask(port, good_body(dice))


def dropped(port: int, dice: random.Random, _: list[bytes]) -> int:
    body = json.loads(good_body(dice)) | {"stream": True, "max_tokens": 100}
    return ask(port, json.dumps(body).encode(), read_all=False)


def streamed(port: int, dice: random.Random, _: list[bytes]) -> int:
    return ask(port, json.dumps(json.loads(good_body(dice)) | {"stream": True}).encode())


def looked(port: int, dice: random.Random, _: list[bytes]) -> int:
    """Asks where the model looked for words that it may have written."""
    content = image_content(*(url_of(drawn_image(dice)) for _ in range(dice.choice((1, 1, 2)))))
    asked = {"token_ids": [dice.randrange(10, 250) for _ in range(dice.randint(1, 30))]}
    body = {"model": "arlow", "messages": [{"role": "user", "content": content}], **asked}
    return ask(port, json.dumps(body).encode(), path="/v1/heat")


def bad(port: int, dice: random.Random, bodies: list[bytes]) -> int:
    paths = "/v1/chat/completions", "/v1/chat/completions", "/v1/completions", "/v1/heat", "/v1/../etc/passwd"
    path = dice.choice(paths)
    return ask(port, dice.choice(bodies), path=path)


def hostile(port: int, dice: random.Random, _: list[bytes]) -> int:
    """Bytes that are no request or half of one; 0 where the server cuts the connection, or 1 where we do."""
    half = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent = dice.choice(
        (
            dice.randbytes(300),
            b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000,
            half + b"Content-Length: 900\r\n\r\n{",
            half + b"Content-Length: 99999999999\r\n\r\n{",
            half + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        )
    )
    with socket.create_connection(("127.0.0.1", port), timeout=0.3) as connection:
        connection.sendall(sent)
        try:
            received = connection.recv(100)
        except TimeoutError:
            return 1
        return int(received[9:12]) if received.startswith(b"HTTP/1.1") else 0


KINDS: dict[str, tuple[int, Callable[[int, random.Random, list[bytes]], int]]] = {
    "good": (6, good),
    "streamed": (2, streamed),
    "dropped": (2, dropped),
    "looked": (1, looked),
    "bad": (5, bad),
    "hostile": (2, hostile),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: 10)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        server, port = start_server(Path(folder), "--max-body-mb", "2")
        try:
            load = run_load(server, port, arguments.minutes * 60)
        finally:
            server.send_signal(signal.SIGTERM)
            _, errors = server.communicate(timeout=60)
    rows = [[kind, status or "cut", number] for (kind, status), number in sorted(load.statuses.items())]
    total, faults = sum(load.statuses.values()), sum(load.count(kind, 500) for kind in KINDS)
    quarter = len(load.rss) // 4
    sentence = (
        f"{total:,} requests in {load.seconds:.0f} seconds from {CLIENTS} clients: {faults} answered with 500. Memory "
        f"{statistics.median(load.rss[quarter : 2 * quarter]):.0f} MiB in the second quarter of the time, "
        f"{statistics.median(load.rss[-quarter:]):.0f} in the last ({load.growth:+.1%}, goal at most "
        f"{GOAL_OF_GROWTH:+.0%}). The server ended with {server.returncode}."
    )
    text = f"# Serving under load\n\n{machine_line()}\n\n{sentence}\n\n{table(['request', 'status', 'number'], rows)}"
    figures: dict[str, object] = {"seconds": load.seconds, "requests": rows, "rss_mib": load.rss, "growth": load.growth}
    report("serving_load" if arguments.minutes >= 10 else None, text, figures)
    if faults or server.returncode or "Traceback" in errors:
        raise SystemExit(f"the server failed: {errors[-2000:]}")


if __name__ == "__main__":
    main()
