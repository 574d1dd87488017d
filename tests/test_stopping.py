"""SIGTERM ends a command as Ctrl-C does, with a sentence and the status that a shell gives it."""

import os
import signal

import pytest

from arlow_vl import cli
from arlow_vl.stopping import STOPS, Ended, end_by_sigterm, note_when_stopped, sentence_of_stop


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background process lacks
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "told"), [(signal.SIGTERM, "ended by SIGTERM"), (signal.SIGINT, "interrupted")])
def test_the_command_says_what_stopped_it(monkeypatch, capsys, number, told):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    monkeypatch.setattr(cli, "install_output", lambda: None)  # pytest has its own standard output
    monkeypatch.setattr(cli, "build_parser", lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as end:
        cli.run()
    assert end.value.code == 128 + number
    assert capsys.readouterr().err == f"arlow: {told}\n"


def test_a_signal_that_the_starter_ignores_stays_ignored():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_by_sigterm()
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Ended(143)])
def test_advice_is_for_where_nothing_says_how_far_it_came(stop):
    assert sentence_of_stop(stop, "the same command continues").endswith("; the same command continues")
    with pytest.raises(STOPS), note_when_stopped(lambda: "two of three are done"):
        raise stop
    assert sentence_of_stop(stop, "the same command continues").endswith("; two of three are done")


def test_another_end_is_told_nothing():
    with pytest.raises(SystemExit) as end, note_when_stopped(lambda: "two of three are done"):
        raise SystemExit(1)
    assert not hasattr(end.value, "__notes__")
