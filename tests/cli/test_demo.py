"""`arlow demo` is `arlow serve` with a page, and says where it is."""

import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from arlow_vl.cli import main
from tests.serving.test_server_bounds import until
from tests.tiny_runs import write_text_checkpoint


def test_the_options_are_those_of_serve(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ARLOW_API_KEY", raising=False)
    assert main(["demo", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert "--host 0.0.0.0 is reached from other machines, so clients must send a key" in capsys.readouterr().err
    assert main(["demo", str(tmp_path / "nowhere"), "--port", "0"]) == 4
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.slow
def test_it_prints_where_the_page_is_and_opens_it_there(tmp_path):
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf "%s" "$1" > {opened}\n')
    browser.chmod(0o755)
    folder = write_text_checkpoint(tmp_path / "model")
    command = [sys.executable, "-c", "from arlow_vl.cli import run; run()", "demo", str(folder)]
    options = ["--port", "0", "--device", "cpu", "--open"]
    demo = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, env=os.environ | {"BROWSER": f"{browser} %s"}
    )
    try:
        assert demo.stdout is not None
        line = demo.stdout.readline()
        url = re.fullmatch(r"the page of arlow is at (http://127\.0\.0\.1:\d+/) on cpu, end with Ctrl\+C\n", line)[1]
        with urllib.request.urlopen(url) as answer:
            assert b"<title>Arlow-VL</title>" in answer.read()
        assert until(opened.exists) and until(lambda: opened.read_text() == url)
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(30) == 0
    finally:
        demo.kill()
