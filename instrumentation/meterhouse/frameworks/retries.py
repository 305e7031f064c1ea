"""Retries of LangChain and LangGraph: a customer that is paused stays so, however often its call is repeated.

Their policies (`with_retry`, `RetryPolicy`, `ModelRetryMiddleware`, `ToolRetryMiddleware`) retry nearly every exception
where nothing else is said. `UsageLimitExceeded` is retried only where a policy names it. A callable cannot be asked
what it names, and is not asked about it; who wants to wait for the end of a pause says so by `meterhouse.waiting`.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from meterhouse import patches
from meterhouse.pauses import UsageLimitExceeded


def install(module: ModuleType) -> None:
    """Patch what decides about a retry."""
    for path, wrapper in _patches(module).items():
        patches.wrap(module, path, wrapper)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    for path in _patches(module):
        patches.unwrap(module, path)


def _patches(module: ModuleType) -> dict[str, Callable[..., Any]]:
    if module.__name__ == "langchain_core.runnables.retry":
        return {"RunnableRetry._sync_retrying": _retrying, "RunnableRetry._async_retrying": _retrying}
    if hasattr(module, "should_retry_exception"):  # langchain.agents.middleware
        return {"should_retry_exception": lambda wrapped, _, args, kwargs: _should_retry(wrapped, args, kwargs, 1)}
    return {"_should_retry_on": lambda wrapped, _, args, kwargs: _should_retry(wrapped, args, kwargs, 0)}


def _should_retry(wrapped: Any, args: tuple[Any, ...], kwargs: dict[str, Any], place: int) -> Any:
    """`wrapped` is given an exception and, at this place of the arguments, a policy."""
    policy = args[place] if len(args) > place else kwargs.get("retry_on", kwargs.get("retry_policy"))
    error = args[1 - place] if len(args) > 1 - place else kwargs.get("exc")
    if isinstance(error, UsageLimitExceeded) and not _names_it(getattr(policy, "retry_on", policy)):
        return False
    return wrapped(*args, **kwargs)


def _retrying(wrapped: Any, runnable: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What tenacity makes of the policy, with ours before it."""
    retrying = wrapped(*args, **kwargs)
    asked = getattr(retrying, "retry", None)
    if asked is not None and not _names_it(getattr(runnable, "retry_exception_types", ())):

        def retry(state: Any) -> Any:
            outcome = state.outcome
            paused = outcome.failed and isinstance(outcome.exception(), UsageLimitExceeded)
            return False if paused else asked(state)

        retrying.retry = retry
    return retrying


def _names_it(policy: object) -> bool:
    kinds = policy if isinstance(policy, list | tuple) else (policy,)
    return any(isinstance(kind, type) and issubclass(kind, UsageLimitExceeded) for kind in kinds)
