"""What is wrong on the command line of `arlow evaluate` is said before the libraries that take seconds are loaded."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from tests.evaluation.tasks.conftest import write
from tests.evaluation.tasks.test_resume import TASK

COMMAND = str(Path(sysconfig.get_path("scripts"), "arlow"))
RUN = f"""if True:
    import json, runpy, sys
    sys.argv[0] = "arlow"
    try: runpy.run_path({COMMAND!r}, run_name="__main__")
    except SystemExit as end: status = end.code
    slow = sorted(sys.modules.keys() & {{"torch", "timm", "lightning"}})
    print(json.dumps({{"status": status, "slow": slow}}))
"""
CAPTIONS = "image,text\na.jpg,A robin.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder whose files are there and never opened, tasks, and some data."""
    files = {"hf/config.json": {}, "hf/model.safetensors": b"", "run/hf/config.json": {}, "data/captions.csv": CAPTIONS}
    files |= {"mine.yaml": yaml.safe_dump(TASK), "misspelt.yaml": yaml.safe_dump(TASK | {"metrcs": []})}
    means = {"kind": "caption", "metrics": ["BLEU"], "controls": ["shuffled", "class_means"]}
    files |= {"means.yaml": yaml.safe_dump(TASK | means)}
    files |= {"text.yaml": (Path(__file__).parents[3] / "arlow_vl/evaluation/tasks/text-perplexity.yaml").read_bytes()}
    return write(tmp_path_factory.mktemp("early"), files)


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ("evaluate --task vqav3", 3, "no task is called vqav3; did you mean vqav2?"),
        ("evaluate --task none.yaml", 3, "none.yaml: No such file or directory; name the .yaml of a task"),
        ("evaluate --task misspelt.yaml", 3, "misspelt.yaml: unknown 'metrcs'; did you mean metrics?"),
        ("evaluate --task mine.yaml --task mine.yaml", 3, "two tasks have one name"),
        (
            "evaluate --task mine.yaml --model gone",
            4,
            "gone holds no config.json; name the hf folder of a finished run",
        ),
        ("evaluate --task mine.yaml --model run", 4, "run holds no config.json; name run/hf (see `arlow fit`)"),
        ("evaluate --task mine.yaml", 3, "no such file or folder: data/test-*.tar; name "),
        ("evaluate --task mine.yaml --data gone", 3, "no such file or folder: gone; name "),
        ("evaluate --task means.yaml --data data/captions.csv", 3, "class_means needs captions of training data; give"),
        ("evaluate --task text.yaml", 3, "data/text/validation.jsonl"),
        (
            "evaluate --task mine.yaml --data data/captions.csv --training gone.csv",
            3,
            "no such file or folder: gone.csv",
        ),
        ("reproduce gone", 3, "gone is no folder; `arlow evaluate --output FOLDER` writes one with results"),
        ("report data", 3, "data holds no results (<task>/run.json); run `arlow evaluate` first"),
        ("compare gone data", 3, "gone is no folder; `arlow evaluate --output FOLDER` writes one with results"),
    ],
)
def test_a_wrong_word_is_refused_before_torch_is_loaded(folder, words, status, sentence):
    typed = words.split()
    if typed[0] == "evaluate":
        typed += ["--output", "results", *([] if "--model" in typed else ["--model", "hf"])]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *typed], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert sentence in done.stderr and done.stderr.count("\n") == 1
    assert json.loads(done.stdout) == {"status": status, "slow": []}
    assert not (folder / "results").exists()
