"""Questions that the warehouse answers while something else is at work on the same machine."""

from functools import cached_property
from typing import Any, cast

from clickhouse_connect.driver.client import Client


class _Beside:
    def __init__(self, client: Client) -> None:
        self._client = client

    @cached_property
    def _threads(self) -> int:
        return max(int(self._client.query("SELECT getSetting('max_threads')").result_rows[0][0]) // 2, 1)

    def query(self, query: str, parameters: dict[str, Any] | None = None) -> Any:
        return self._client.query(query, parameters=parameters, settings={"max_threads": self._threads})


def beside(client: Client) -> Client:
    """The client, for `query` alone, with half of the processors that the warehouse would use for one question.

    With all of them it takes processor time from those who settle what was read before: of two processors, half of one.
    """
    return cast("Client", _Beside(client))
