"""What takes the place of values that say who somebody is: values of the same shape, by a key that is thrown away."""

import re
from typing import Final

from meterhouse_collector.permutation import Permutation

_NUMBER: Final = re.compile("-?[1-9][0-9]{0,18}|0")


class Pseudonyms:
    """Values of the same shape that tell nothing, for whoever does not have the secret: one of each erasure's own."""

    def __init__(self, secret: bytes) -> None:
        self._permuted = Permutation(secret)

    def text(self, value: str) -> str:
        """Letters and digits become others, as many bytes; punctuation stays, as whether an id is valid hangs on it."""
        return self._permuted.text(value)

    def customer(self, value: str) -> str:
        """Of a customer's id. A number becomes one as long, in digits and as a varint: it may be sent as such."""
        if not _NUMBER.fullmatch(value) or not -(2**63) <= int(value) < 2**63:
            return self.text(value)
        number, digits = abs(int(value)), len(value.lstrip("-"))
        low, high = 0 if digits == 1 else 10 ** (digits - 1), 10**digits
        if value.startswith("-"):  # every negative number is a varint of ten bytes
            return str(-self._permuted.number(number, max(low, 1), min(high, 2**63 + 1)))
        of_size = _varints(_varint_bytes(number))
        return str(self._permuted.number(number, max(low, of_size[0]), min(high, of_size[1])))

    def varint(self, value: bytes) -> bytes:
        """Of the bytes of a varint, as many."""
        number = varint(value, 0)[0]
        return encoded(self._permuted.number(number, *_varints(_varint_bytes(number))), len(value))

    def double(self, value: bytes) -> bytes:
        """Of the eight bytes of a double."""
        return self._permuted.double(value)

    def octets(self, value: bytes) -> bytes:
        """Of bytes, as many."""
        return self._permuted.octets(value)


def varint(buffer: bytes | bytearray, at: int) -> tuple[int, int]:
    """The number of a varint of protobuf, and where it ends."""
    number = shift = 0
    while True:
        byte = buffer[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number & 2**64 - 1, at
        shift += 7


def encoded(number: int, length: int) -> bytes:
    """The varint of a number in so many bytes; what it has too many say nothing."""
    parts = [number >> 7 * place & 127 | 128 for place in range(length)]
    return bytes([*parts[:-1], parts[-1] & 127])


def _varint_bytes(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))


def _varints(length: int) -> tuple[int, int]:
    """The half-open range of the numbers whose varints have so many bytes."""
    return 0 if length == 1 else 128 ** (length - 1), min(128**length, 2**64)
