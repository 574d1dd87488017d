"""Tars as they come: every dialect, every damage named, nothing lost without a word."""

import gzip
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.outside_data import (
    BODY,
    END_MARKER,
    JPEG,
    KEYS,
    WHOLE,
    pax_header,
    samples,
    tar_header,
    tar_member,
    with_checksum,
    written_by_tarfile,
)

SAMPLE_BYTES = len(BODY) // 4


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar_is_read(scan, tar_format):
    long = "folder/" * 12 + "nämé" + "x" * 60
    assert scan(written_by_tarfile(samples("a", long), tar_format)).keys == ["a", long]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"6"])
def test_links_devices_and_fifos_leave_their_sample_incomplete(scan, kind):
    found = scan(tar_header("a.jpg", 0, kind) + tar_member("a.txt", b"x") + WHOLE)
    assert found.outcome == (KEYS, {"missing_image": 1}, 0)


def test_sparse_members_leave_their_sample_incomplete(scan):
    gnu = bytearray(tar_header("a.jpg", 512, b"S"))
    gnu[482] = 1  # a block of its map follows
    members = with_checksum(gnu) + bytes(512) + b"x" * 512 + tar_member("a.txt", b"x")
    members += pax_header("GNU.sparse.major", b"1") + tar_member("b.jpg", JPEG) + tar_member("b.txt", b"x")
    assert scan(members + WHOLE).outcome == (KEYS, {"missing_image": 2}, 0)


DAMAGE = {
    "no end marker": (BODY, KEYS),
    "half an end marker": (WHOLE[:-512], KEYS),
    "data after the end marker": (WHOLE + b"x", KEYS),
    "joined tars": (WHOLE + WHOLE, KEYS),
    "a terabyte declared": (BODY + tar_header("z.jpg", 0, size_field=b"\x80" + (10**12).to_bytes(11, "big")), KEYS),
    "a negative size": (BODY + tar_header("z.jpg", 0, size_field=b"\xff" * 12) + END_MARKER, KEYS),
    "a size in letters": (BODY + tar_header("z.jpg", 0, size_field=b"00000000xyz\0") + END_MARKER, KEYS),
    "a giant long name": (BODY + tar_member("x", bytes(2**21), b"L") + END_MARKER, KEYS),
    "a pax header that promises more": (BODY + tar_member("x", b"99 path=a\n", b"x") + END_MARKER, KEYS),
    "a pax header without length": (BODY + tar_member("x", b"path=a\n", b"x") + END_MARKER, KEYS),
    "a pax header for nothing": (BODY + pax_header("path", b"a") + END_MARKER, KEYS),
    "cut between samples": (BODY[: 2 * SAMPLE_BYTES], ["0", "1"]),
    "cut in a header": (BODY[: 2 * SAMPLE_BYTES + 100], ["0", "1"]),
    "cut in an image": (BODY[: 2 * SAMPLE_BYTES + 600], ["0", "1"]),
    "an empty file": (b"", []),
    "noise": (b"\x17\xd4" * 3000, []),
    "a text": (b"hello\n" * 1000, []),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_fault_and_what_was_whole_before_is_used(scan, kind):
    data, keys = DAMAGE[kind]
    assert scan(data).outcome == (keys, {}, 1)


def test_a_broken_header_checksum_is_named_with_its_place_and_the_sample_before(scan):
    place = WHOLE.index(b"2.jpg")
    found = scan(WHOLE[:place] + b"X" + WHOLE[place + 1 :])
    assert found.keys == ["0", "1"]
    assert found.tally.faults[0].reason == f"header checksum at byte {place:,} after sample 1"


def test_a_lost_part_is_counted_beside_the_fault(scan):
    place = WHOLE.index(b"2.txt")
    assert scan(WHOLE[:place] + bytes(512) + WHOLE[place + 512 :]).outcome == (["0", "1"], {"missing_text": 1}, 1)


def test_a_compressed_shard_is_a_fault_that_says_so(scan):
    assert "gzip" in scan(gzip.compress(WHOLE)).tally.faults[0].reason


def test_a_shard_with_an_end_marker_alone_is_no_fault(scan):
    assert scan(END_MARKER).outcome == ([], {}, 0)


def test_padding_after_the_end_marker_is_no_fault(scan):
    assert scan(WHOLE + bytes(10_240)).outcome[2] == 0


def test_old_tars_with_signed_checksums_are_read(scan):
    block = bytearray(tar_header("é.jpg", len(JPEG)))
    block[148:156] = b"%06o\0 " % (int(block[148:154], 8) - 2 * 256)
    data = bytes(block) + tar_member("", JPEG)[512:] + tar_member("é.txt", b"x") + END_MARKER
    assert scan(data).outcome == (["é"], {}, 0)


def test_a_pax_size_goes_before_the_headers(scan):
    members = (
        pax_header("size", b"%d" % len(JPEG))
        + tar_header("a.jpg", 0)
        + tar_member("", JPEG)[512:]
        + tar_member("a.txt", b"x")
    )
    assert scan(members + END_MARKER).outcome == (["a"], {}, 0)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_mutation_of_a_shard_loses_a_sample_silently(scan, data):
    shard = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(shard) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "zeros", "insert", "swap"])):
            case "flip":
                shard[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                shard = shard[: place + 1]
            case "zeros":
                shard[place : place + 512] = bytes(len(shard[place : place + 512]))
            case "insert":
                shard[place:place] = data.draw(st.binary(min_size=1, max_size=600))
            case "swap":
                half = len(shard) // 2 // 512 * 512
                shard = shard[half:] + shard[:half]
    found = scan(bytes(shard))
    assert found.keys == KEYS or found.tally.skipped or found.tally.faults
    assert set(found.keys) <= set(KEYS) or found.tally.skipped
