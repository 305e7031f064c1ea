"""Keys at the door: a key that was made just now is never refused, and guessing costs one read at a time."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from meterhouse_collector.credentials import Credentials
from meterhouse_collector.refusals import Refused
from meterhouse_store.access import Credential, hash_key


class Registry:
    """Counts how often it is read."""

    def __init__(self):
        self.keys: list[str] = []
        self.reads = 0

    def read(self) -> list[Credential]:
        self.reads += 1
        valid_from = datetime(2026, 1, 1, tzinfo=UTC)
        return [
            Credential(f"c{n}", "live", key, hash_key(key), None, valid_from, None) for n, key in enumerate(self.keys)
        ]


def test_a_key_made_just_after_the_registry_was_read_is_taken_at_its_first_use():
    registry = Registry()
    credentials = Credentials(registry.read)

    async def use() -> str:
        with pytest.raises(Refused):
            await credentials.of("Bearer mh_guess")
        registry.keys.append("mh_new")
        return (await credentials.of("Bearer mh_new")).credential_id

    assert asyncio.run(use()) == "c0"


def test_many_guesses_at_once_share_one_reading_of_the_registry():
    registry = Registry()
    credentials = Credentials(registry.read)

    async def guess() -> None:
        answers = await asyncio.gather(*(credentials.of(f"Bearer mh_{n}") for n in range(50)), return_exceptions=True)
        assert all(isinstance(answer, Refused) for answer in answers)

    asyncio.run(guess())
    assert registry.reads == 1


def test_a_key_for_prices_reports_no_usage():
    registry = Registry()
    registry.keys.append("mh_prices")
    credentials = Credentials(lambda: [replace(it, role="pricing") for it in registry.read()])

    with pytest.raises(Refused, match="this key is for pricing") as refused:
        asyncio.run(credentials.of("Bearer mh_prices"))
    assert refused.value.kind.http_status == 401
