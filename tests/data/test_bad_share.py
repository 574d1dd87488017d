"""What is said where too much is unusable."""

from collections import Counter

import pytest

from arlow_vl.data.bad_share import refuse_bad_share
from arlow_vl.errors import DataError


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        ("missing_image_file", r"; is images \(--images\) the folder that image paths start from\?$"),
        ("missing_image", r"; text without images is read as kind: text \(--format text\)$"),
        ("bad_json", r"raise max_bad_fraction \(--max-bad-fraction\)$"),
    ],
)
def test_what_else_may_be_wrong_is_said_behind_the_advice(reason, end):
    with pytest.raises(DataError, match=rf"^here: 9 of 10 samples are unusable.*{reason} 9 \(as a\).*{end}"):
        refuse_bad_share("samples", 1, Counter({reason: 9}), {reason: "a"}, 0.1, where="here: ")
