"""Images are found as people name them, and read a little ahead of their use."""

import os
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from arlow_vl.errors import DataError
from arlow_vl.serving.image_files import find_images, read_ahead
from vision.decoding.image import ImageError


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """photos/ with two images, one without a suffix below, and what is none."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/b.jpg", "photos/a.PNG", "photos/deep/c.webp", "photos/.hidden/d.jpg", "photos/._a.PNG"):
        os.makedirs(os.path.dirname(name), exist_ok=True)
        Image.new("RGB", (4, 4)).save(name)
    os.rename("photos/deep/c.webp", "photos/deep/c")
    for name in ("photos/notes.txt", "photos/deep/readme", "photos/Thumbs.db"):
        (tmp_path / name).write_text("no image")
    os.mkfifo("photos/pipe.jpg")
    return tmp_path


def test_a_folder_gives_all_images_below_it_and_the_number_of_other_files(photos):
    assert find_images(["photos"]) == (["photos/a.PNG", "photos/b.jpg", "photos/deep/c"], 2)


def test_linked_folders_are_entered_once_and_hidden_ones_never(photos):
    os.rename("photos/deep", "far")
    for link in ("photos/linked", "photos/linked-again"):
        os.symlink(photos / "far", link)
    os.symlink(photos / "photos", "photos/loop")
    assert find_images(["photos"]).paths == ["photos/a.PNG", "photos/b.jpg", "photos/linked/c"]


def test_a_folder_that_cannot_be_listed_is_named_but_for_hidden_ones(photos, monkeypatch):
    scandir = os.scandir

    def refusing(closed):
        def list_folder(path):
            if str(path).endswith(closed):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        return list_folder

    monkeypatch.setattr(os, "scandir", refusing(".hidden"))
    assert len(find_images(["photos"]).paths) == 3
    monkeypatch.setattr(os, "scandir", refusing("deep"))
    with pytest.raises(DataError, match=r"photos/deep: cannot be listed \(Permission denied\)"):
        find_images(["photos"])


def test_several_folders_files_and_globs_keep_their_order(photos):
    found = find_images(["photos/deep", "photos/*.jpg", "missing.jpg", "photos/notes.txt", "photos/b.jpg"])
    assert found.paths == ["photos/deep/c", "photos/b.jpg", "missing.jpg", "photos/notes.txt", "photos/b.jpg"]
    assert find_images(["photos/**"]).paths == ["photos/a.PNG", "photos/b.jpg", "photos/deep/c"]
    assert find_images(["pho*"]).paths == find_images(["photos"]).paths


@pytest.mark.parametrize("source", ["photos/**", "photos/**/*", "photos/**/", "photos/../photos/**/*"])
def test_a_glob_gives_an_image_once_however_many_folders_above_it_match(photos, source):
    os.renames("photos/deep/c", "photos/deep/er/c")
    names = [os.path.normpath(path) for path in find_images([source]).paths]
    assert sorted(names) == ["photos/a.PNG", "photos/b.jpg", "photos/deep/er/c"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(photos):
    Image.new("RGB", (4, 4)).save("a[1].jpg")
    assert find_images(["a[1].jpg"]) == (["a[1].jpg"], 0)
    os.rename("photos/deep", "photos/deep[1]")
    assert find_images(["photos/deep[1]/*"]).paths == ["photos/deep[1]/c"]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("*.gif", r"\*.gif matches no image; name image files, folders or globs"),
        ("photos/*.txt", r"photos/\*.txt matches no image \(1 other file\)"),
        ("empty", "empty is a folder without an image"),
    ],
)
def test_where_no_image_is_the_sentence_says_so(photos, source, sentence):
    os.mkdir("empty")
    with pytest.raises(ValueError, match=sentence):
        find_images(["photos", source])


@settings(max_examples=30)
@given(st.lists(st.booleans(), max_size=30), st.integers(1, 8), st.integers(1, 4))
def test_images_come_in_order_and_no_more_than_a_few_are_waiting(good, ahead, threads):
    paths = [str(number) for number in range(len(good))]
    reading, lock = set(), threading.Lock()
    most = 0

    def read(path):
        nonlocal most
        with lock:
            reading.add(path)
            most = max(most, len(reading))
        if not good[int(path)]:
            raise ImageError(path, "corrupt", "broken")
        return int(path)

    taken = []
    for path, value in read_ahead(read, paths, ahead=ahead, threads=threads):
        with lock:
            reading.discard(path)
        taken.append(path)
        assert value == int(path) if good[int(path)] else isinstance(value, ImageError)
    assert taken == paths and most <= ahead


def test_a_reader_that_is_left_reads_nothing_more():
    read = []
    paths = read_ahead(lambda path: read.append(path) or time.sleep(0.01), map(str, range(10**6)), ahead=4, threads=1)
    next(paths)
    paths.close()
    count = len(read)
    time.sleep(0.05)
    assert len(read) == count <= 5


def test_a_fault_of_ours_is_no_fault_of_an_image():
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda path: 1 / 0, ["a"], ahead=1))
