"""Who a call is for: customer, agent, conversation, step and task, carried in one private context variable.

Private, not baggage: baggage leaves the process in HTTP headers to whoever is called. A context variable follows
asyncio tasks and `asyncio.to_thread`; a plain thread starts without it (see docs/instrumentation.md).
"""

import functools
import inspect
import os
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from meterhouse.vocabulary import (
    AGENT_ID,
    AGENT_NAME,
    CONVERSATION_ID,
    CUSTOMER_ID,
    ENV_AGENT,
    ENV_CUSTOMER,
    STEP,
    TASK_ID,
)

MAX_BYTES = 256
"""Longest identifier that the collector takes; the contract's limit."""

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Attribution:
    """What is known about whom the work is for. None: not known here."""

    customer: str | None = None
    agent_id: str | None = None
    agent_name: str | None = None
    conversation: str | None = None
    step: str | None = None
    task: str | None = None

    def point_attributes(self) -> dict[str, str]:
        """The part that belongs on the data point; the environment fills in what the context does not know."""
        name = self.agent_name or (os.environ.get(ENV_AGENT) if self.agent_id is None else None)
        return _present({CUSTOMER_ID: self.payer(), AGENT_ID: self.agent_id or name, AGENT_NAME: name})

    def payer(self) -> str | None:
        """The customer, the environment's where the context knows none."""
        return self.customer or os.environ.get(ENV_CUSTOMER)

    def event_attributes(self) -> dict[str, str]:
        """The part that belongs on the single event."""
        return _present({CONVERSATION_ID: self.conversation, STEP: self.step, TASK_ID: self.task})


_UNKNOWN = Attribution()
_current: ContextVar[Attribution] = ContextVar("meterhouse_attribution", default=_UNKNOWN)
_hinted: ContextVar[Attribution] = ContextVar("meterhouse_hints", default=_UNKNOWN)


def current() -> Attribution:
    """The attribution of the code that is running: what the host said, completed by what a framework knows."""
    said, hinted = _current.get(), _hinted.get()
    if hinted is _UNKNOWN:
        return said
    agent = said if said.agent_id or said.agent_name else hinted
    return Attribution(
        said.customer,
        agent.agent_id,
        agent.agent_name,
        said.conversation or hinted.conversation,
        said.step or hinted.step,
        said.task,
    )


class Scope:
    """Sets part of the attribution: `with`, `async with`, or a decorator of any kind of function.

    A decorated generator has the scope while it runs, not while its consumer does.
    """

    _variable = _current

    def __init__(self, **changes: str | None) -> None:
        self._changes = changes
        self._tokens: list[tuple[Token[Attribution], Attribution]] = []

    def __enter__(self) -> Self:
        before = self._variable.get()
        self._tokens.append((self._variable.set(replace(before, **self._changes)), before))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        token, before = self._tokens.pop()
        try:
            self._variable.reset(token)
        except ValueError:  # left in another context than entered: a generator that the event loop closed
            self._variable.set(before)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def fresh(self) -> "Scope":
        """A scope of its own for one call of a decorated function."""
        return type(self)(**self._changes)

    def __call__(self, function: Function) -> Function:
        if inspect.isasyncgenfunction(function):
            wrapper: Callable[..., Any] = _around_async_generator(self, function)
        elif inspect.isgeneratorfunction(function):
            wrapper = _around_generator(self, function)
        elif inspect.iscoroutinefunction(function):

            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self.fresh():
                    return await function(*args, **kwargs)
        else:

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self.fresh():
                    return function(*args, **kwargs)

        return cast(Function, functools.wraps(function)(wrapper))


class Hint(Scope):
    """What a framework knows of the work inside: holds where the host has not said it itself.

    Values of the framework that cannot be identifiers (empty, no string) are left out; too long ones are cut later.
    """

    _variable = _hinted

    def __init__(
        self,
        *,
        agent_name: object = None,
        agent_id: object = None,
        conversation: object = None,
        step: object = None,
    ) -> None:
        known = {"agent_name": agent_name, "agent_id": agent_id, "conversation": conversation, "step": step}
        super().__init__(**{key: value for key, value in known.items() if isinstance(value, str) and value})


_task: ContextVar["Outcome | None"] = ContextVar("meterhouse_task", default=None)


class Outcome:
    """How the running task learns from a framework that it failed."""

    def __init__(self, fail: Callable[[], None]) -> None:
        self.fail = fail
        self._around: list[Outcome | None] = []

    def __enter__(self) -> None:
        self._around.append(_task.get())
        _task.set(self)

    def __exit__(self, *_: object) -> None:
        _task.set(self._around.pop())


def fail_task() -> None:
    """The running task, if there is one, did not reach its goal: for frameworks that stop without raising."""
    running = _task.get()
    if running is not None:
        running.fail()


def _around_generator(scope: Scope, function: Callable[..., Generator[Any, Any, Any]]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        inner = function(*args, **kwargs)
        resume: Callable[[], Any] = functools.partial(next, inner)
        while True:
            try:
                with scope.fresh():
                    value = resume()
            except StopIteration as end:
                return end.value
            try:
                resume = functools.partial(inner.send, (yield value))
            except GeneratorExit:
                with scope.fresh():
                    inner.close()
                raise
            except BaseException as error:  # noqa: BLE001 - handed on to the generator, as `yield from` does
                resume = functools.partial(inner.throw, error)

    return wrapper


def _around_async_generator(scope: Scope, function: Callable[..., AsyncGenerator[Any, Any]]) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        inner = function(*args, **kwargs)
        resume: Callable[[], Any] = functools.partial(anext, inner)
        while True:
            try:
                with scope.fresh():
                    value = await resume()
            except StopAsyncIteration:
                return
            try:
                resume = functools.partial(inner.asend, (yield value))
            except GeneratorExit:
                with scope.fresh():
                    await inner.aclose()
                raise
            except BaseException as error:  # noqa: BLE001 - handed on to the generator, as `yield from` does
                resume = functools.partial(inner.athrow, error)

    return wrapper


def _present(attributes: dict[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in attributes.items() if value}


def identifier(value: object, what: str) -> str:
    """`value` as an identifier; raises ValueError when it is not a string of 1 to 256 bytes."""
    if not isinstance(value, str) or not value or len(value.encode()) > MAX_BYTES:
        raise ValueError(f"{what} must be a string of 1 to {MAX_BYTES} bytes, not {value!r:.80}")
    return value
