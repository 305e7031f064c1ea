"""The entry point of auto-instrumentation: patches the choke points when, and only when, their library is imported."""

import importlib
import sys
from collections.abc import Collection
from types import ModuleType
from typing import Any

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from meterhouse.patches import switch_off, switch_on
from meterhouse.providers import CHOKE_POINTS
from meterhouse.trouble import warn_once


class MeterhouseInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Meters the supported SDKs: `MeterhouseInstrumentor().instrument()`, or by `opentelemetry-instrument`."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: a library that is missing is simply never imported."""
        return ()

    def _instrument(self, **_: Any) -> None:
        _active.add(True)
        switch_on()
        for library in CHOKE_POINTS:
            if library in sys.modules:
                _install(sys.modules[library])
            elif library not in _hooked:
                _hooked.add(library)
                wrapt.register_post_import_hook(_install, library)

    def _uninstrument(self, **_: Any) -> None:
        _active.clear()
        switch_off()
        for library, ours in CHOKE_POINTS.items():
            if library in sys.modules:
                importlib.import_module(ours).remove(sys.modules[library])


_active: set[bool] = set()
_hooked: set[str] = set()
"""Libraries with a hook, which cannot be taken back: it asks whether we are active when it fires."""


def _install(library: ModuleType) -> None:
    if not _active:
        return
    try:
        importlib.import_module(CHOKE_POINTS[library.__name__]).install(library)
    except Exception:  # noqa: BLE001 - the host's import must succeed whatever its version looks like
        warn_once(library.__name__, "Meterhouse cannot meter this version of %s.", library.__name__, with_trace=True)
