"""Who a call is for: customer, agent, conversation, step and task, carried in private context variables.

Private, not baggage: baggage leaves the process in HTTP headers to whoever is called. A context variable follows
asyncio tasks and `asyncio.to_thread`; for threads and other processes see carrying.py.
"""

import functools
import os
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, cast

from meterhouse import forks
from meterhouse.trouble import warn_once
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


class Attribution(NamedTuple):
    """What is known about whom the work is for. None: not known here."""

    customer: str | None = None
    agent_id: str | None = None
    agent_name: str | None = None
    conversation: str | None = None
    step: str | None = None
    task: str | None = None
    grant: str | None = None
    """The signed grant that says so (grants.py)."""

    def attributes(self) -> dict[str, str]:
        """What of it is known, as attributes of an event."""
        known = {
            CUSTOMER_ID: self.customer,
            AGENT_ID: self.agent_id or self.agent_name,
            AGENT_NAME: self.agent_name,
            CONVERSATION_ID: self.conversation,
            STEP: self.step,
            TASK_ID: self.task,
        }
        return {key: value for key, value in known.items() if value}


class Entered(NamedTuple):
    """A scope that was entered in this context, and the attribution inside it."""

    scope: "Scope"
    changes: dict[str, str | None]
    inside: Attribution


Stack = tuple[Entered, ...]
"""The scopes around the running code, outermost first. Never changed: a task that was started inside keeps its own."""

_UNKNOWN = Attribution()
said: ContextVar[Stack] = ContextVar("meterhouse_attribution", default=())
hinted: ContextVar[Stack] = ContextVar("meterhouse_hints", default=())


def current() -> Attribution:
    """The attribution of the code that is running: what the host said, completed by what a framework knows."""
    stack, hints = said.get(), hinted.get()
    mine = stack[-1].inside if stack else _UNKNOWN
    if not hints:
        return mine
    theirs = hints[-1].inside
    agent = mine if mine.agent_id or mine.agent_name else theirs
    return Attribution(
        mine.customer,
        agent.agent_id,
        agent.agent_name,
        mine.conversation or theirs.conversation,
        mine.step or theirs.step,
        mine.task,
        mine.grant,
    )


def resolved() -> Attribution:
    """`current`; the environment fills in a customer and an agent where the context knows none."""
    who = current()
    if who.customer and (who.agent_name or who.agent_id):
        return who
    name = who.agent_name or (None if who.agent_id else _from_environment(ENV_AGENT))
    return Attribution(
        who.customer or _from_environment(ENV_CUSTOMER),
        who.agent_id or name,
        name,
        who.conversation,
        who.step,
        who.task,
        who.grant,
    )


class Scope:
    """Sets part of the attribution: `with`, `async with`, or a decorator of any kind of function.

    A decorated generator has the scope while it runs, not while its consumer does. One object may be used any number of
    times, in several threads and tasks at once.
    """

    _stack = said

    def __init__(self, **changes: str | None) -> None:
        self._changes = changes

    def __enter__(self) -> Self:
        try:
            self._push()
        # A signal handler raised, after it was set perhaps: nobody will leave what is not entered.
        except BaseException:
            self._pop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.over(error)
        finally:
            self._pop()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def over(self, error: BaseException | None) -> None:
        """The work inside has ended, by `error` or well; called once, still inside."""

    def fresh(self) -> "Scope":
        """A scope of its own for one call of a decorated function."""
        return self

    def __call__(self, function: Function) -> Function:
        """Decorate. TypeError for a class: its instances would be made inside the scope, and work outside of it."""
        with forks.lock:
            import inspect  # here: it takes as long as all else that every agent imports of Meterhouse
        if inspect.isclass(function):
            raise TypeError(f"a scope decorates functions and methods, not the class {function.__name__}")
        if inspect.isasyncgenfunction(function):
            wrapper: Callable[..., Any] = _around_async_generator(self, function)
        elif inspect.isgeneratorfunction(function):
            wrapper = _around_generator(self, function)
        elif inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):

            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self.fresh():
                    return await function(*args, **kwargs)
        else:

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self.fresh():
                    return function(*args, **kwargs)

        return cast(Function, functools.wraps(function)(wrapper))

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """One step of a generator: inside, without an end."""
        self._push()
        try:
            yield
        finally:
            self._pop()

    def _push(self) -> None:
        stack = self._stack.get()
        before = stack[-1].inside if stack else _UNKNOWN
        self._stack.set((*stack, Entered(self, self._changes, before._replace(**self._changes))))

    def _pop(self) -> None:
        """Take the scope out of this context, wherever it stands.

        It is not the last one where a generator that was never decorated is closed inside other scopes, and not there
        at all where it is closed in another context, by the garbage collector or an event loop: that one keeps its own.
        """
        stack = self._stack.get()
        at = next((at for at in range(len(stack) - 1, -1, -1) if stack[at].scope is self), None)
        if at is None:
            return
        kept = stack[:at]
        for one in stack[at + 1 :]:
            before = kept[-1].inside if kept else _UNKNOWN
            kept = (*kept, Entered(one.scope, one.changes, before._replace(**one.changes)))
        self._stack.set(kept)


class Hint(Scope):
    """What a framework knows of the work inside: holds where the host has not said it itself.

    Values of the framework that cannot be identifiers (empty, no string) are left out; too long ones are cut later.
    """

    _stack = hinted

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


def fail_task() -> None:
    """The running task, if there is one, did not reach its goal: for frameworks that stop without raising."""
    for entered in reversed(said.get()):
        fail = getattr(entered.scope, "fail", None)
        if fail is not None:
            fail()
            return


def _around_generator(scope: Scope, function: Callable[..., Generator[Any, Any, Any]]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        own = scope.fresh()
        with _ending(own):
            inner = function(*args, **kwargs)
            resume: Callable[[], Any] = functools.partial(next, inner)
            while True:
                try:
                    with own.resumed():
                        value = resume()
                except StopIteration as end:
                    return end.value
                try:
                    resume = functools.partial(inner.send, (yield value))
                except GeneratorExit:
                    with own.resumed():
                        inner.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - handed on to the generator, as `yield from` does
                    resume = functools.partial(inner.throw, error)

    return wrapper


def _around_async_generator(scope: Scope, function: Callable[..., AsyncGenerator[Any, Any]]) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        own = scope.fresh()
        with _ending(own):
            inner = function(*args, **kwargs)
            resume: Callable[[], Any] = functools.partial(anext, inner)
            while True:
                try:
                    with own.resumed():
                        value = await resume()
                except StopAsyncIteration:
                    return
                try:
                    resume = functools.partial(inner.asend, (yield value))
                except GeneratorExit:
                    with own.resumed():
                        await inner.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - handed on to the generator, as `yield from` does
                    resume = functools.partial(inner.athrow, error)

    return wrapper


@contextmanager
def _ending(scope: Scope) -> Iterator[None]:
    """Around a whole generator: its scope is over when the generator is; left early by its consumer, it ended well."""
    error: BaseException | None = None
    try:
        yield
    except GeneratorExit:
        raise
    except BaseException as raised:
        error = raised
        raise
    finally:
        with scope.resumed():
            scope.over(error)


def _from_environment(name: str) -> str | None:
    """What the variable says; None for what is no identifier, which must not be cut into another one's."""
    text = os.environ.get(name, "").strip()  # read from a file it ends in a newline
    if not text or (text.isascii() and len(text) <= MAX_BYTES):
        return text or None
    try:
        if len(text.encode()) <= MAX_BYTES:
            return text
    except UnicodeEncodeError:  # bytes that are no UTF-8
        pass
    warn_once(name, "Meterhouse cannot use %s: it is not UTF-8 of at most %d bytes.", name, MAX_BYTES)
    return None


def identifier(value: object, what: str) -> str:
    """`value` as an identifier; raises ValueError when it is not a string of 1 to 256 bytes."""
    if not isinstance(value, str) or not 0 < _bytes(value) <= MAX_BYTES:
        raise ValueError(f"{what} must be a string of 1 to {MAX_BYTES} bytes of UTF-8, not {value!r:.80}")
    return value


def _bytes(text: str) -> int:
    """Its length in UTF-8; 0 for what has none: half a character would be replaced, and two names become one."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0
