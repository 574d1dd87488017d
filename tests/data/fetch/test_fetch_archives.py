import pytest

from arlow_vl.data.fetch.archives import is_safe_name, read_members
from arlow_vl.errors import DataError

MEMBERS = {"a/one.txt": b"1", "a/two.png": b"22"}


@pytest.mark.parametrize(("kind", "name"), [("wheel", "x.whl"), ("tgz", "x.tgz"), ("deb", "x_1_all.deb")])
def test_wanted_members_of_every_kind_of_archive_are_read(request, kind, name):
    archive = request.getfixturevalue(f"make_{kind}")(name, MEMBERS)
    assert list(read_members(archive, lambda member: member.endswith(".png"))) == [("a/two.png", b"22")]


def test_links_are_not_followed(make_deb):
    archive = make_deb("x_1_all.deb", {"one.txt": b"1", "two.txt": "one.txt", "three.txt": "/etc/passwd"})
    assert [name for name, _ in read_members(archive, lambda name: True)] == ["one.txt"]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "a\\..\\evil"])
def test_a_member_that_leaves_its_archive_is_refused(make_tgz, name):
    assert not is_safe_name(name)
    with pytest.raises(DataError, match="unsafe name"):
        list(read_members(make_tgz("x.tgz", {name: b"evil"}), lambda name: True))


def test_a_member_over_the_limit_is_refused(make_wheel, monkeypatch):
    monkeypatch.setattr("arlow_vl.data.fetch.archives.MAX_MEMBER_BYTES", 10)
    with pytest.raises(DataError, match="too large"):
        list(read_members(make_wheel("x.whl", {"big": b"0" * 11}), lambda name: True))


def test_a_file_that_is_no_debian_package_is_named(tmp_path):
    (tmp_path / "x.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(DataError, match=r"x\.deb is not a Debian package"):
        list(read_members(tmp_path / "x.deb", lambda name: True))
