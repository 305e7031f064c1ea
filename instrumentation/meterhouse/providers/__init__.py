"""The choke points: which module of which library is patched when it is imported, and by what.

To add a provider: one module here with `install(module)`, one line below, one test.
"""

from typing import Final

CHOKE_POINTS: Final = {
    "openai._base_client": "meterhouse.providers.openai",
    "anthropic._base_client": "meterhouse.providers.anthropic",
    "mcp.client.session": "meterhouse.providers.mcp",
}
"""Module that is patched -> module of ours whose `install(module)` does it and whose `remove(module)` undoes it."""
