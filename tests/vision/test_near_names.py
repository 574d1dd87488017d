"""A path that is not there is answered with the one that was probably meant."""

import os

import pytest

from vision.decoding.image import ImageError
from vision.decoding.sources import read_image
from vision.near_names import did_you_mean_file, near_file


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "summer").mkdir(parents=True)
    (tmp_path / "photos" / "summer" / "IMG_1.JPG").touch()
    (tmp_path / "text.yaml").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("photo", "photos"),
        ("photo/", "photos"),
        ("photo/summer/IMG_1.JPG", "photos/summer/IMG_1.JPG"),
        ("photo/winter/IMG_1.JPG", "photos"),
        ("photos/sumer", "photos/summer"),
        ("photos/summer/img_1.jpg", "photos/summer/IMG_1.JPG"),
        ("texts.yaml", "text.yaml"),
        ("./text.yml", "text.yaml"),
        ("zebra", None),
        ("page.yaml", None),
        ("photos", None),
        ("text.yaml/more", None),
        ("photo*", None),
        ("text-{000..099}.yaml", None),
        ("", None),
        ("a\0b", None),
        ("x" * 300, None),
        ("phot\udcff", "photos"),
    ],
)
def test_the_nearest_name_is_found(typed, meant):
    assert near_file(typed) == meant


def test_an_absolute_path_stays_one(folder):
    assert near_file(folder / "photo") == str(folder / "photos")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_has_no_names(folder):
    (folder / "photos").chmod(0o100)
    assert near_file("photos/sumer") is None


def test_a_sentence_goes_on_with_it_or_with_the_usual_advice():
    assert did_you_mean_file("photo", "name a file") == "did you mean photos?"
    assert did_you_mean_file("zebra", "name a file") == "name a file"


def test_an_image_that_is_not_there_is_answered_so():
    with pytest.raises(ImageError, match=r"^photo: no such file or folder; did you mean photos\?"):
        read_image("photo")
    with pytest.raises(ImageError, match="zebra: no such file or folder; name an image file"):
        read_image("zebra")


def test_a_link_that_leads_nowhere_is_told_and_not_meant(tmp_path):
    (tmp_path / "photo.jpg").symlink_to("gone.jpg")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    for name, target in (("photo.jpg", "gone.jpg"), ("round.jpg", "round.jpg")):
        assert near_file(tmp_path / name) is None
        assert did_you_mean_file(tmp_path / name, "name a file") == f"it is a link that leads nowhere, to {target}"
    assert near_file(tmp_path / "photo.jpg" / "a") is None
