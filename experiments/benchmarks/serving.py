"""Questions about images at once: `arlow serve`, Mllama behind transformers' own server, and calls of `generate`.

Run it with `python -m experiments.benchmarks.serving`. The model is Arlow's of the benchmark `vision_language`, 25
million parameters in the decoder and the 196 patches of a small ViT, random weights, float32, one thread. Every
question has a JPEG of its own, 640 x 480, which is decoded, prepared and encoded each time, and an answer of 64 tokens.
Mllama is the one of `vision_language`, as large and around the same encoder, behind `transformers serve`. The servers,
their clients and `generate` share a process and take turns. Its CPU seconds leave out who else is at work on the
machine, and are what a quiet core takes; seconds of the clock stand beside them. Some eight minutes.
"""

import argparse
import base64
import contextlib
import copy
import http.client
import io
import itertools
import json
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from PIL import Image

from arlow_vl.data.prompts import about_image
from arlow_vl.models.arlow.tokenization_arlow_fast import train_tokenizer
from arlow_vl.models.arlow_vl.image_processing_arlow_vl import ArlowImageProcessor
from arlow_vl.models.arlow_vl.processing_arlow_vl import ArlowProcessor
from arlow_vl.models.open_model import OpenModel
from arlow_vl.serving.api import Api
from arlow_vl.serving.assistant import Assistant
from arlow_vl.serving.engine import Engine
from arlow_vl.serving.limits import ServerLimits
from arlow_vl.serving.listening import listen
from arlow_vl.serving.server import Server
from experiments.benchmarks.decoder import SHAPE, TOY_SHAPE
from experiments.benchmarks.measure import Timings, alternate, machine_line, report, table
from experiments.benchmarks.serving_peer import NAME as PEER
from experiments.benchmarks.serving_peer import mllama_served
from experiments.benchmarks.vision_language import ENCODER, TOY_ENCODER, build_arlow

CLIENTS = (1, 4, 16)
NEW_TOKENS = 64
GOAL_OF_SIXTEEN = 4.0  # times one
WORDS = "the cat sat on a mat and saw one big red dog run over green hills while small birds sing in old trees".split()
QUESTION = "what does the big red dog see on the green hills?"


def build(is_toy: bool) -> tuple[Assistant, dict]:
    """The model with a tokenizer, and its decoder's sizes. Its answers have no end: all are as long as they may be."""
    dice = random.Random(0)
    tokenizer = train_tokenizer([" ".join(dice.choices(WORDS, k=20)) for _ in range(100)], vocab_size=300)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shape = copy.deepcopy(TOY_SHAPE if is_toy else SHAPE) | special
    shape["vocab_size"] = max(shape["vocab_size"], len(tokenizer))
    image: Any = tokenizer.convert_tokens_to_ids("<image>")
    model = build_arlow(shape, TOY_ENCODER if is_toy else ENCODER, image=image)
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            parameter.data.fill_(0.5)
    model.config.vision_config.transform = model.model.vision.image_transform().to_dict()
    processor = ArlowProcessor(ArlowImageProcessor.of_model(model.config), tokenizer)
    assistant = Assistant(OpenModel(model.eval(), processor.tokenizer, processor))
    assistant.__dict__["stop_ids"] = frozenset()
    return assistant, shape


def jpeg(seed: int, width: int, height: int) -> bytes:
    """An image that no other is, of soft colours as photographs have them."""
    generator = torch.Generator().manual_seed(seed)
    noise = (torch.rand(12, 16, 3, generator=generator) * 255).to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise.numpy()).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@torch.inference_mode()
def generate(assistant: Assistant, image: bytes, tokens: int) -> str:
    """An answer by transformers' `generate`, with all that the server does for one."""
    prompt = assistant.chat(about_image(QUESTION), [assistant.image(image)])
    ids = torch.tensor([prompt.ids])
    inputs = assistant.pack(prompt.images) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    pad = assistant.tokenizer.pad_token_id
    written = assistant.model.generate(**inputs, do_sample=False, pad_token_id=pad, **length)
    return assistant.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


@contextlib.contextmanager
def arlow_served(assistant: Assistant) -> Iterator[int]:
    """The port of `arlow serve`."""
    engine, limits = Engine(assistant, max_batch=max(CLIENTS)), ServerLimits()
    server = Server(Api(assistant, engine, limits=limits), engine, listen("127.0.0.1", 0), limits)
    is_ready = threading.Event()
    thread = threading.Thread(target=server.run, args=(is_ready.set,))
    thread.start()
    is_ready.wait()
    try:
        yield int(server.url.rpartition(":")[2])
    finally:
        server.drain()
        thread.join()


def body(image: bytes, *, model: str = "arlow", **options: Any) -> bytes:
    url = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return json.dumps({"model": model, "messages": [{"role": "user", "content": content}], **options}).encode()


def ask(port: int, request: bytes) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/chat/completions", request, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(answer.read().decode())
    return answer


def ask_at_once(model: str, port: int, images: list[bytes], tokens: int) -> None:
    """Every image by a client of its own."""
    requests = [body(image, model=model, max_tokens=tokens) for image in images]

    def client(request: bytes) -> None:
        completed = json.loads(ask(port, request).read())["usage"]["completion_tokens"]
        assert completed == tokens, completed

    threads = [threading.Thread(target=client, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def first_token(port: int, image: bytes) -> float:
    """Seconds from a request to the first event of its answer."""
    request, start = body(image, max_tokens=1, stream=True), time.perf_counter()
    answer = ask(port, request)
    answer.readline()
    seconds = time.perf_counter() - start
    answer.read()
    return seconds


def cases(assistant: Assistant, ports: dict[str, int], tokens: int) -> dict[str, Callable[[], object]]:
    """By server and number of clients. Each call asks about images that were never seen."""
    size, seeds = (640, 480), itertools.count()
    made = {count: [[jpeg(next(seeds), *size) for _ in range(count)] for _ in range(64 // count)] for count in CLIENTS}
    turns = {count: itertools.cycle(batches) for count, batches in made.items()}
    alone = itertools.cycle(jpeg(next(seeds), *size) for _ in range(64))

    def ask_all(model: str, count: int) -> None:
        ask_at_once(model, ports[model], next(turns[count]), tokens)

    served = {case_of(model, count): partial(ask_all, model, count) for count in CLIENTS for model in ports}
    return {"generate": lambda: generate(assistant, next(alone), tokens), **served}


def case_of(model: str, count: int) -> str:
    return f"{model}, {count} client{'s' * (count > 1)}"


def with_cpu_seconds(runs: dict[str, Callable[[], object]]) -> tuple[dict[str, Callable[[], None]], Timings]:
    """The same cases, and their CPU seconds, which grow with each call."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}

    def run(name: str) -> None:
        start = time.process_time()
        runs[name]()
        seconds[name].append(time.process_time() - start)

    return {name: partial(run, name) for name in runs}, Timings(seconds)


def figures_of(case: str, wall: Timings, cpu: Timings, tokens: int) -> dict[str, float]:
    """tokens/s; times the speed of `generate` and of the peer asked by as many; how long in terms of one client."""
    model, _, clients = case.partition(", ")
    count = int(clients.split()[0]) if clients else 1
    own = "arlow" if case == "generate" else model
    return {
        "tokens_per_cpu_second": count * tokens / cpu.median(case),
        "speed_over_generate": count * statistics.median(cpu.ratios(case, "generate")),
        "speed_over_peer": statistics.median(cpu.ratios(case, case_of(PEER, count))),
        "cpu_time_over_one": 1 / statistics.median(cpu.ratios(case, case_of(own, 1))),
        "clock_time_over_one": 1 / statistics.median(wall.ratios(case, case_of(own, 1))),
    }


def measured(assistant: Assistant, shape: dict, *, is_toy: bool, rounds: int) -> tuple[str, dict[str, object]]:
    """The text of the report, and its figures."""
    tokens, large_size = (4, (400, 300)) if is_toy else (NEW_TOKENS, (4000, 3000))
    with arlow_served(assistant) as port, mllama_served(assistant, shape) as port_of_peer:
        runs, cpu = with_cpu_seconds(cases(assistant, {"arlow": port, PEER: port_of_peer}, tokens))
        wall = alternate(runs, rounds, warmup=1)
        first = [first_token(port, jpeg(10_000 + number, *large_size)) for number in range(5)]
    for seconds in cpu.seconds.values():
        del seconds[0]  # of the warm-up
    figures = {case: figures_of(case, wall, cpu, tokens) for case in wall.seconds}
    goals = {case_of("arlow", 16): f"at most {GOAL_OF_SIXTEEN:.1f}"}
    rows = [
        [case, f"{cpu.median(case):.2f}", f"{wall.median(case):.2f}", f"{of['tokens_per_cpu_second']:,.0f}"]
        + [f"{of[name]:.2f}" for name in list(of)[1:]]
        + [goals.get(case, "")]
        for case, of in figures.items()
    ]
    header = ["case", "CPU s", "clock s", "tokens/CPU s", "tokens/s over generate", "tokens/s over mllama"]
    header += ["CPU time over 1 client", "clock time over 1 client", "goal"]
    sentence = f"First token after a JPEG of 12 megapixels: {statistics.median(first):.2f} s, median of {len(first)}."
    kept: dict[str, object] = {"cpu_seconds": cpu.seconds, "clock_seconds": wall.seconds, "cases": figures}
    kept |= {"first_token_seconds": first, "new_tokens": tokens}
    return f"# Serving\n\n{machine_line()}\n\n{table(header, rows)}\n\n{sentence}", kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--toy", action="store_true", help="sizes of a test: figures say nothing and are not kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    assistant, shape = build(arguments.toy)
    text, kept = measured(assistant, shape, is_toy=arguments.toy, rounds=arguments.rounds)
    report(None if arguments.toy else "serving", text, kept)


if __name__ == "__main__":
    main()
