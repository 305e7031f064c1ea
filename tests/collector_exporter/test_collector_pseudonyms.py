"""What takes the place of a person's values: of the same shape, and never the same for two of them."""

import itertools
import string
import struct

import pytest

from meterhouse_collector.pseudonyms import Pseudonyms, encoded, varint

NAMES = Pseudonyms(b"k" * 32)
ALPHABET = string.ascii_letters + string.digits


@pytest.mark.parametrize("length", [1, 2])
def test_no_two_short_ids_become_one(length):
    values = ["".join(letters) for letters in itertools.product(ALPHABET, repeat=length)]
    assert sorted(map(NAMES.text, values)) == sorted(values)


@pytest.mark.parametrize("value", ["jane.doe@example.org", "Müller & Söhne", "東京-7", "a" * 300, "", "--", "🙂x"])
def test_a_value_keeps_its_bytes_and_where_its_punctuation_stands(value):
    found = NAMES.text(value)
    assert len(found.encode()) == len(value.encode())
    marks = [(at, one) for at, one in enumerate(value) if one.isascii() and not one.isalnum()]
    assert [(at, one) for at, one in enumerate(found) if one.isascii() and not one.isalnum()] == marks
    assert (found != value) == any(one.isalnum() for one in value)
    assert NAMES.text(value) == found
    assert Pseudonyms(b"l" * 32).text(value) != found or value in ("", "--")


def test_numbers_stay_as_long_and_none_becomes_another_ones():
    small = [varint(NAMES.varint(encoded(number, 1)), 0)[0] for number in range(128)]
    assert sorted(small) == list(range(128))
    for number, length in ((128, 2), (16_383, 2), (2**62, 9), (2**63, 10), (2**64 - 1, 10)):
        assert len(NAMES.varint(encoded(number, length))) == length
    padded = NAMES.varint(encoded(5, 3))  # what has more bytes than it needs is the same number
    assert (len(padded), varint(padded, 0)[0]) == (3, varint(NAMES.varint(encoded(5, 1)), 0)[0])


def test_doubles_stay_finite_and_what_is_none_stays():
    found = {NAMES.double(struct.pack("<d", number / 7)) for number in range(500)}
    assert len(found) == 500
    assert {struct.unpack("<d", one)[0] for one in found}.isdisjoint({float("inf"), float("-inf")})
    assert NAMES.double(struct.pack("<d", float("inf"))) == struct.pack("<d", float("inf"))


@pytest.mark.parametrize("customer", ["0", "42", "110", "12345", "-7", "9223372036854775807", "-9223372036854775808"])
def test_a_customer_whose_id_is_a_number_becomes_one_that_is_as_long_as_text_and_as_a_number(customer):
    def size(number):
        return max(1, -(-(int(number) % 2**64).bit_length() // 7))

    for key in range(50):
        found = Pseudonyms(bytes([key]) * 32).customer(customer)
        assert (len(found), size(found)) == (len(customer), size(customer))
        assert str(int(found)) == found
