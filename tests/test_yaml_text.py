"""A recipe or a task that is no YAML: the file, the line, and what to do."""

import pytest

from arlow_vl.errors import DataError
from arlow_vl.evaluation.tasks.task import load_task
from arlow_vl.training.recipe_files import read_yaml

FAULTS = {
    "stage: text\nrun:\n\tmax_steps: 4\n": "line 3, column 1: a tab, and YAML takes spaces; write spaces in its place",
    "stage: text\nrun:\n  seed: 1\n \tmax_steps: 4\n": "line 4, column 2: a tab, and YAML takes spaces",
    "stage:\ttext\nrun: {\tseed: 1}\n": "a tab, and YAML takes spaces",
    "title: a: b\n": "line 1, column 9: a second key in a line, or a line indented otherwise",
    "title: @a\n": "line 1, column 8: found character '@' that cannot start any token; put quotes around the value",
    "a: [1,\n": "line 2, column 1: expected the node content, but found '<stream end>'",
    "a: \x01\n": "unacceptable character #x0001",
}


@pytest.mark.parametrize("text", FAULTS)
@pytest.mark.parametrize("read", [read_yaml, lambda path: load_task(str(path))], ids=["recipe", "task"])
def test_the_line_is_named_and_what_is_wrong_in_it(text, read, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises((ValueError, DataError)) as caught:
        read(path)
    sentence = str(caught.value)
    assert f"{path} is not YAML: " in sentence and FAULTS[text] in sentence and "\n" not in sentence


def test_a_recipe_that_is_not_there_is_answered_with_the_nearest_or_with_where_some_are(tmp_path):
    (tmp_path / "text.yaml").touch()
    with pytest.raises(ValueError, match=r"txt\.yaml does not exist; did you mean .*/text\.yaml\?"):
        read_yaml(tmp_path / "txt.yaml")
    with pytest.raises(ValueError, match=r"zebra does not exist; name a \.yaml, as experiments/ has them"):
        read_yaml(tmp_path / "zebra")
    with pytest.raises(ValueError, match=rf"recipe {tmp_path} is no file; name a \.yaml of {tmp_path}"):
        read_yaml(tmp_path)
