"""A saved folder can carry the tokenizers' code, for machines that do not have this package."""

import json
import os
import subprocess
import sys

import pytest

from arlow_vl.models.arlow.tokenization_arlow import ArlowTokenizer
from arlow_vl.models.arlow.tokenization_arlow_fast import ArlowTokenizerFast

TEXT = "a<image> b\n中文"
LOAD = """
import json, sys
sys.modules["arlow_vl"] = None  # importing it fails from here on
from transformers import AutoTokenizer
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    print(json.dumps([type(tokenizer).__name__, tokenizer(%r).input_ids]))
"""


@pytest.mark.slow
def test_both_load_where_the_package_is_missing(tmp_path, monkeypatch):
    for kind in (ArlowTokenizer, ArlowTokenizerFast):
        monkeypatch.setattr(
            kind, "_auto_class", "AutoTokenizer"
        )  # register_for_auto_class() would stay for other tests
        kind().save_pretrained(tmp_path / kind.__name__)
    folders = [str(tmp_path / kind.__name__) for kind in (ArlowTokenizer, ArlowTokenizerFast)]
    done = subprocess.run(
        [sys.executable, "-c", LOAD % TEXT, *folders],
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    ids = ArlowTokenizer()(TEXT).input_ids
    assert done.returncode == 0, done.stderr
    assert list(map(json.loads, done.stdout.splitlines())) == [["ArlowTokenizer", ids], ["ArlowTokenizerFast", ids]]
