"""docs/first_steps.md from its first block to its last, as somebody does who follows it in an empty folder."""

import csv
import re
import shlex
from pathlib import Path

import pytest

from arlow_vl.cli import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "first_steps.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MODEL = "runs/first-steps/photos/hf"


class Follower:
    """Does what the page says, block by block; what its commands printed."""

    def __init__(self, capsys: pytest.CaptureFixture) -> None:
        self.capsys = capsys
        self.tables = iter(("captions.csv", "held-out.csv"))
        self.printed: dict[str, str] = {}

    def csv(self, block: str) -> None:
        Path("photos").mkdir(exist_ok=True)
        Path("photos", next(self.tables)).write_text(block)

    def yaml(self, block: str) -> None:
        Path(block.splitlines()[0].removeprefix("# ")).write_text(block)

    def python(self, block: str) -> None:
        exec(compile(block, "docs/first_steps.md", "exec"), {})

    def console(self, block: str) -> None:
        for line in block.splitlines():
            # One thread, as the tests share their cores.
            options = ["--run.threads", "1"] if line.startswith("arlow fit") else []
            assert main([*shlex.split(line.removeprefix("arlow ")), *options]) == 0, line
            self.printed[line] = self.capsys.readouterr().out


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("first-steps")
    (folder / "tests").symlink_to(ROOT / "tests")
    return folder


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def captions(printed: str) -> dict[str, str]:
    return dict(re.findall(r"^ *photos/(\d\d\.jpg): (.*)$", printed, re.MULTILINE))


def test_who_follows_the_page_gets_the_captions_that_it_shows(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    follower = Follower(capsys)
    for kind, block in BLOCKS:
        getattr(follower, kind)(block)

    learnt = {row["file_name"]: row["text"] for row in rows_of("photos/captions.csv")}
    written = captions(follower.printed[f"arlow caption photos --model {MODEL}"])  # the last time
    assert len(written) == 12 and len(learnt) == 10
    assert written.items() >= learnt.items()
    assert captions(PAGE) == learnt

    told = follower.printed["arlow fit --config photos.yaml --dry-run"]
    table = re.search(r"^    (component .*\n(?:    .*\n)+)", PAGE, re.MULTILINE)[1]
    for line in table.splitlines():
        assert line.strip() in told

    assert "held-out" in Path("runs/first-steps/photos/report.html").read_text()
    metrics = rows_of("runs/first-steps/photos/metrics.csv")
    trained, validated = ([float(row[key]) for row in metrics if row[key]] for key in ("train_loss", "validation_loss"))
    assert len(trained) == 150 and len(validated) == 6
    assert trained[-1] < 1 and validated[-1] > validated[0] > 4  # by heart, as the page says
