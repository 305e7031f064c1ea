"""Groq's own SDK, which speaks OpenAI's chat completions: usage as there, and in the last piece of every stream.

Where several models worked on an answer (compound systems), each model's part is its own: `usage_breakdown` tells them.
https://console.groq.com/docs/api-reference
"""

from types import ModuleType
from typing import Any

from meterhouse.providers import sdk_client
from meterhouse.providers.openai import OpenAI


class Groq(OpenAI):
    """See streamed.Provider."""

    name = "groq"

    def provider_name(self, client: object) -> str:
        return self.name

    def ask_for_usage(self, options: Any, path: str) -> None:
        """Nothing has to be asked: `x_groq` has it."""
        return


def install(module: ModuleType) -> None:
    """Patch the SDK's base client."""
    sdk_client.install(module, Groq())


remove = sdk_client.remove
