"""Keyed permutations that keep the shape of a value: as many bytes, the same kinds of characters at the same places.

No two values of a shape become one, however short they are: ids such as 1, 2, 3 stay apart. Without the key nothing can
be turned back. A Feistel network over mixed radices, as in FF1 (NIST SP 800-38G), with SHAKE256 for its rounds.
"""

import hashlib
import math
import struct
from collections.abc import Sequence
from typing import Final

_ALNUM: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PLACES: Final = {character: place for place, character in enumerate(_ALNUM)}
_ROUNDS: Final = 8
_PERMUTED_BYTES: Final = 256
"""What is longer is no identifier; each of its characters is replaced by itself, in time that grows with the length."""
_CACHED: Final = 100_000


class Permutation:
    """The permutation of one key (32 random bytes). Equal values become equal values."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._known: dict[str, str] = {}

    def text(self, value: str) -> str:
        """ASCII letters and digits become such, other letters ones of their block; punctuation stays."""
        found = self._known.get(value)
        if found is None:
            if len(self._known) >= _CACHED:
                self._known.clear()
            found = self._known[value] = self._text(value)
        return found

    def octets(self, value: bytes) -> bytes:
        """Bytes, as many."""
        return bytes(self._digits(list(value), [256] * len(value), value))

    def number(self, value: int, low: int, high: int) -> int:
        """A number of range(low, high), in which the value is."""
        left = math.isqrt(high - low - 1) + 1
        right = -(-(high - low) // left)
        offset = value - low
        while True:  # what falls beyond the range is permuted on, until it is back
            one, other = self._rounds(offset // right, offset % right, left, right)
            offset = one * right + other
            if offset < high - low:
                return low + offset

    def double(self, bits: bytes) -> bytes:
        """The eight bytes of a finite double, as those of another one; what is none stays."""
        if not math.isfinite(struct.unpack("<d", bits)[0]):
            return bits
        while True:
            bits = self.number(int.from_bytes(bits, "little"), 0, 2**64).to_bytes(8, "little")
            if math.isfinite(struct.unpack("<d", bits)[0]):
                return bits

    def _text(self, value: str) -> str:
        codes = [_PLACES.get(one, ord(one) & 63 if ord(one) >= 128 else -1) for one in value]
        digits = [code for code in codes if code >= 0]
        radices = [62 if one in _PLACES else 64 for one, code in zip(value, codes, strict=True) if code >= 0]
        permuted = iter(self._digits(digits, radices, value.encode()))
        return "".join(
            one if code < 0 else _ALNUM[next(permuted)] if one in _PLACES else chr(ord(one) & ~63 | next(permuted))
            for one, code in zip(value, codes, strict=True)
        )

    def _digits(self, digits: Sequence[int], radices: Sequence[int], value: bytes) -> list[int]:
        if len(value) > _PERMUTED_BYTES:
            stream = hashlib.shake_256(self._key + value).digest(2 * len(digits))
            shifts = struct.unpack(f"<{len(digits)}H", stream)
            return [(one + by) % radix for one, by, radix in zip(digits, shifts, radices, strict=True)]
        half = len(digits) // 2
        sizes = math.prod(radices[:half]), math.prod(radices[half:])
        pair = self._rounds(_joined(digits[:half], radices[:half]), _joined(digits[half:], radices[half:]), *sizes)
        return [*_split(pair[0], radices[:half]), *_split(pair[1], radices[half:])]

    def _rounds(self, one: int, other: int, size: int, other_size: int) -> tuple[int, int]:
        for number in range(0, _ROUNDS, 2):
            one = (one + self._shift(number, other, size)) % size
            other = (other + self._shift(number + 1, one, other_size)) % other_size
        return one, other

    def _shift(self, number: int, by: int, size: int) -> int:
        length = size.bit_length() // 8 + 9  # 64 bits more than the size has: no shift is likelier than another
        told = self._key + bytes([number]) + by.to_bytes(by.bit_length() // 8 + 1, "big")
        return int.from_bytes(hashlib.shake_256(told).digest(length), "big") % size


def _joined(digits: Sequence[int], radices: Sequence[int]) -> int:
    number = 0
    for digit, radix in zip(digits, radices, strict=True):
        number = number * radix + digit
    return number


def _split(number: int, radices: Sequence[int]) -> list[int]:
    digits = []
    for radix in reversed(radices):
        number, digit = divmod(number, radix)
        digits.append(digit)
    return digits[::-1]
