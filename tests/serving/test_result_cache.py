"""What was read lately is kept, up to a number of bytes."""

import pytest

from arlow_vl.serving.result_cache import ResultCache


def test_what_was_used_longest_ago_is_forgotten_first():
    memory = ResultCache(10)
    for name in "abc":
        memory.put(name, name.upper(), 4)
        memory.get("a")
    assert [memory.get(name) for name in "abc"] == ["A", None, "C"] and memory.bytes == 8
    memory.put("whole", "W", 11)
    assert memory.get("whole") is None and len(memory) == 2
    memory.put("a", "B", 6)
    assert memory.get("a") == "B" and memory.bytes == 10


@pytest.mark.parametrize("size", [1, 5])
def test_memory_never_holds_more_than_its_bound(size):
    memory = ResultCache(12)
    for number in range(50):
        memory.put(number, number, size)
        assert memory.bytes <= 12 and memory.bytes == size * len(memory)
