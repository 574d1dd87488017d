"""`arlow serve` answers OpenAI's client until it is told to end, and says at once what it cannot serve."""

import signal
import socket
import threading
from pathlib import Path

import openai
import pytest

from arlow_vl.cli import build_parser, main
from arlow_vl.cli.serve import checked_key, open_server
from arlow_vl.serving.listening import is_loopback
from experiments.benchmarks.serving_load import KINDS, run_load, start_server, write_model
from tests.tiny_runs import write_text_checkpoint


def ask(capsys, *words) -> tuple[int, str]:
    status = main(["serve", *map(str, words)])
    return status, capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    status, error = ask(capsys, tmp_path / "nowhere", "--port", 0)
    assert status == 4 and "nowhere" in error and error.count("\n") == 1


def test_another_host_demands_a_key(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ARLOW_API_KEY", raising=False)
    status, error = ask(capsys, tmp_path, "--host", "0.0.0.0")
    assert status == 2 and "--host 0.0.0.0 is reached from other machines, so clients must send a key" in error
    assert checked_key("a-long-key", "0.0.0.0") == "a-long-key" and checked_key(None, "localhost") is None


@pytest.mark.parametrize("key", ["short", "with a space", "schlüssel-lang", "line\nbreak-in-it"])
def test_a_key_that_no_header_can_carry_or_anybody_guesses_is_refused(key):
    with pytest.raises(ValueError, match="the API key must be at least 8 ASCII"):
        checked_key(key, "127.0.0.1")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.1.2", "localhost.example", "")),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host, expected):
    assert is_loopback(host) is expected


def test_a_port_that_is_taken_and_one_that_is_none_are_named_before_any_weight_is_read(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, error = ask(capsys, tmp_path, "--port", port)
    assert status == 2 and f"cannot listen on 127.0.0.1 port {port}: another program listens there" in error
    status, error = ask(capsys, tmp_path, "--port", 99999)
    assert status == 2 and "--port must be from 0 to 65535, got 99999" in error
    status, error = ask(capsys, tmp_path, "--host", "no.such.host.invalid", "--api-key", "long-enough")
    assert status == 2 and "--host no.such.host.invalid is no address of this machine" in error


def test_a_device_that_is_not_there_is_named(tmp_path, capsys):
    folder = write_text_checkpoint(tmp_path / "model")
    status, error = ask(capsys, folder, "--port", 0, "--device", "no-device")
    assert status == 4 and "device no-device cannot be used" in error


def ignores(pid: int, number: int) -> bool:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.slow
def test_a_served_text_model_ends_running_answers_after_sigterm(tmp_path):
    folder = write_text_checkpoint(tmp_path / "model", max_position_embeddings=1024)
    server, port = start_server(folder, "--name", "tiny")
    try:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "the cat"}])
            assert answer.usage.completion_tokens > 0
            assert ignores(server.pid, signal.SIGPIPE)  # else a client that closes early could end the server
            stream = client.completions.create(model="tiny", prompt="the cat", max_tokens=300, stream=True)
            next(stream)
            server.send_signal(signal.SIGTERM)
            reasons = [chunk.choices[0].finish_reason for chunk in stream]
        assert reasons[-1] in ("stop", "length")
        _, errors = server.communicate(timeout=30)
    finally:
        server.kill()
    assert server.returncode == 0 and "Traceback" not in errors, errors


@pytest.mark.slow
def test_a_minute_of_good_bad_and_hostile_requests_is_no_500_and_no_growth(tmp_path):
    write_model(tmp_path / "model")
    server, port = start_server(tmp_path / "model", "--max-body-mb", "2")
    try:
        load = run_load(server, port, seconds=60)
        assert server.poll() is None
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=60)
    finally:
        server.kill()
    assert server.returncode == 0 and "Traceback" not in errors, errors[-2000:]
    assert sum(load.count(kind, 500, 504) for kind in KINDS) == 0, load.statuses
    for kind in ("good", "streamed", "dropped", "looked"):
        assert load.count(kind, 200) > 10, load.statuses
        assert {status for of, status in load.statuses if of == kind} <= {200, 429}, load.statuses
    refused = {status for kind, status in load.statuses if kind == "bad"}
    assert refused <= {400, 404, 413, 415, 429}, load.statuses
    assert load.growth < 0.1, load.rss  # a minute is short: pools of memory still fill
    assert threading.active_count() < 50


def test_each_limit_of_the_command_line_is_the_servers(tmp_path):
    words = "--max-batch 3 --max-waiting 5 --max-tokens 7 --max-images 2 --max-body-mb 4 --request-seconds 9"
    words += " --drain-seconds 11 --port 0 --device cpu"
    args = build_parser().parse_args(["serve", str(write_text_checkpoint(tmp_path / "text")), *words.split()])
    server, device = open_server(args)
    server._listener.close()
    limits, engine = server._limits, server._engine
    assert (engine.max_batch, engine.max_waiting, server._drain_seconds, device) == (3, 5, 11, "cpu")
    assert (limits.max_new_tokens, limits.max_images, limits.request_seconds) == (7, 2, 9)
    assert limits.max_body_bytes == 4 * 2**20
