"""Order of a source's samples in an epoch: a keyed permutation of range(size) that is computed, not stored.

Blocks of consecutive samples are permuted, then the samples inside a buffer of blocks: at any time reads come from the
64 runs of 256 samples that lie in one buffer, which is what disks and object stores like. Worked example with blocks of
2 and buffers of 2 blocks:

    samples          0 1 | 2 3 | 4 5 | 6 7
    turned by 1      1 2 | 3 4 | 5 6 | 7 0      another turn each epoch, so that other samples share a block
    blocks permuted  5 6 | 1 2 | 7 0 | 3 4
    buffers          2 5 6 1   | 0 3 7 4

Up to 16,384 samples are one buffer: a uniform permutation of them all.
"""

import functools
import hashlib
import json

import numpy as np

BLOCK = 256
"""Consecutive samples that stay in one buffer."""
BUFFER = 64 * BLOCK
"""Samples that are permuted at once; this is all the memory that an order takes."""
ROUNDS = 6

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # splitmix64 (Steele et al., 2014)


def shuffled_order(seed: int, name: str, epoch: int, size: int, places: np.ndarray | None = None) -> np.ndarray:
    """Returns the samples at `places` of an epoch (None: all places), int64.

    Depends on the arguments only: not on the process, the machine or numpy's version.
    """
    if places is None:
        places = np.arange(size, dtype=np.int64)
    if size <= BUFFER:
        return permutation(seed, name, epoch, size=size)[places]
    inside = np.empty_like(places)  # place -> place in the blocks' order
    for buffer in np.unique(places // BUFFER):
        chosen, first = places // BUFFER == buffer, int(buffer) * BUFFER
        of_buffer = permutation(seed, name, epoch, int(buffer), size=min(BUFFER, size - first))
        inside[chosen] = first + of_buffer[places[chosen] - first]
    blocks = size // BLOCK
    block, rest = np.divmod(inside, BLOCK)
    whole = block < blocks  # what is left of the last block stays last; the turn makes it other samples each epoch
    block[whole] = bijection(_round_keys(seed, name, epoch), blocks, block[whole])
    return (block * BLOCK + rest + _turn(seed, name, epoch, size)) % size


@functools.lru_cache(maxsize=64)
def permutation(*key: int | str, size: int) -> np.ndarray:
    """Returns a uniform permutation of range(size), int64, which is read-only."""
    # numpy promises a stable raw stream of a bit generator, but no stable output of its own `permutation`.
    random = np.random.Philox(key=int.from_bytes(_digest(*key)[:16], "little")).random_raw(size)
    order = np.argsort(random, kind="stable")
    order.flags.writeable = False
    return order


def bijection(round_keys: tuple[int, ...], size: int, values: np.ndarray) -> np.ndarray:
    """Returns a permutation of range(size) at `values`, in constant memory.

    A Feistel network permutes the smallest range of 4^k numbers that holds `size`; what falls outside goes through it
    again until it is inside (cycle walking: Black and Rogaway, 2002, section 3). Fewer than four times, on average.
    """
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    out = _feistel(round_keys, half_bits, values.astype(np.uint64))
    while (outside := out >= size).any():
        out[outside] = _feistel(round_keys, half_bits, out[outside])
    return out.astype(np.int64)


def _feistel(round_keys: tuple[int, ...], half_bits: int, values: np.ndarray) -> np.ndarray:
    bits, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    left, right = values >> bits, values & mask
    for key in round_keys:
        left, right = right, left ^ (_mixed(right + np.uint64(key)) & mask)
    return (left << bits) | right


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MIX[0]
    x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=64)
def _round_keys(*key: int | str) -> tuple[int, ...]:
    # Below 2**63, so that a key added to half a value never overflows.
    return tuple(int.from_bytes(_digest(*key, "round", number)[:8], "little") >> 1 for number in range(ROUNDS))


def _turn(seed: int, name: str, epoch: int, size: int) -> int:
    return int.from_bytes(_digest(seed, name, epoch, "turn")[:16], "little") % size


def _digest(*key: int | str) -> bytes:
    return hashlib.sha256(json.dumps(key).encode()).digest()
