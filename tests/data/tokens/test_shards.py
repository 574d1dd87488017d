"""A part of the text becomes shards."""

import pytest

from arlow_vl.data.tokens import shards
from arlow_vl.data.tokens.shards import TokenLimits
from arlow_vl.data.tokens.write import tokenize_text
from tests.tiny_runs import sentences, tiny_tokenizer, write_jsonl


class Stop(Exception):
    """What ends a run in the tests."""


@pytest.mark.parametrize("is_stopped", [False, True])
def test_the_tally_is_of_what_max_tokens_took_however_the_run_was_stopped(tmp_path, monkeypatch, is_stopped):
    path = write_jsonl(tmp_path / "a.jsonl", sentences(5))
    path.write_text("broken\n" + path.read_text() + "broken\n" * 30)
    write = shards.PartFacts.write

    def stop(*arguments):
        monkeypatch.setattr(shards.PartFacts, "write", write)
        raise Stop

    arguments = ([path], tiny_tokenizer(), tmp_path / "out")
    options = {"limits": TokenLimits(max_tokens=150, shard_tokens=20), "max_bad_fraction": 0.5}
    if is_stopped:
        monkeypatch.setattr(shards.PartFacts, "write", stop)
        with pytest.raises(Stop):
            tokenize_text(*arguments, **options)
    manifest = tokenize_text(*arguments, **options).manifest
    assert 1 < manifest.documents < 5
    assert (manifest.used, manifest.skipped) == (manifest.documents, {"bad_json": 1})
