"""`arlow report`, as typed."""

import pytest

from arlow_vl.cli import main
from arlow_vl.data.shards import scan_shards
from arlow_vl.evaluation.results import CONTROLS, MODEL, CaptionRow, write_json, write_predictions
from tests.evaluation.made_results import write_captions
from tests.tiny_runs import SAMPLES

SHARDS = sorted(str(path) for path in (SAMPLES / "captions").glob("test-known-*.tar"))


@pytest.fixture
def folder(tmp_path):
    for system in (MODEL, *CONTROLS["captions"]):
        rows = [
            CaptionRow(key=sample.key, prediction="a thing", references=[sample.text])
            for sample in scan_shards(SHARDS).samples
        ]
        write_predictions(tmp_path, "captions-test-known", system, rows)
    return tmp_path


def test_it_prints_the_table_and_writes_the_page_beside_the_results(folder, capsys):
    write_json(folder / "meta.json", {"shards": SHARDS})
    assert main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "shown another image" in printed and printed.endswith(f"{folder / 'report.html'}\n")
    assert (folder / "report.html").read_text().count("<figure") > 8


def test_page_and_shards_can_be_named(folder):
    assert main(["report", str(folder), "--output", str(folder / "page.html"), "--shards", *SHARDS]) == 0
    assert (folder / "page.html").exists()


def test_it_asks_for_the_shards_where_meta_names_none(folder, capsys):
    assert main(["report", str(folder)]) == 2
    assert "say where the images are with --shards" in capsys.readouterr().err


@pytest.mark.parametrize("shards", ["x.tar", 5, {}])
def test_shards_that_are_no_list_are_asked_for(folder, capsys, shards):
    write_json(folder / "meta.json", {"shards": shards})
    assert main(["report", str(folder)]) == 2
    assert "lists no shards" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is no folder; `arlow evaluate" in capsys.readouterr().err


def test_a_missing_control_is_a_usage_error(tmp_path, capsys):
    write_captions(tmp_path)
    (tmp_path / "captions-test-known" / "shuffled.jsonl").unlink()
    assert main(["report", str(tmp_path), "--shards", *SHARDS]) == 2
    assert "shuffled is missing" in capsys.readouterr().err
