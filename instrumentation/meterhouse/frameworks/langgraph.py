"""LangGraph: which agent, conversation and step the work inside a graph belongs to, and agents that give up.

`Pregel.stream` and `astream`, which every way of running a graph comes through, and the function that runs one node.
"""

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

from meterhouse import patches, tools
from meterhouse.attribution import Hint, fail_task
from meterhouse.frameworks.streams import Inside, stepped, stepped_async
from meterhouse.trouble import warn_once

_UNNAMED = "LangGraph"
_NEED_MORE_STEPS = "Sorry, need more steps to process this request."
"""What an agent of `create_react_agent` answers, instead of raising, when it has no steps left."""
_LIMITS = ("ModelCallLimitMiddleware", "ToolCallLimitMiddleware")


def install(module: ModuleType) -> None:
    """Patch the graph class, or the functions that run a node."""
    for path, wrapper in _patches(module).items():
        patches.wrap(module, path, wrapper)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    for path in _patches(module):
        *kind, name = path.split(".")
        patches.unwrap(getattr(module, kind[0]) if kind else module, name)


def _patches(module: ModuleType) -> dict[str, Any]:
    if hasattr(module, "run_with_retry"):
        return {"run_with_retry": _run, "arun_with_retry": _arun}
    if module.Pregel.__module__ == module.__name__:  # newer versions only re-export it from their package
        return {"Pregel.stream": _stream, "Pregel.astream": _astream}
    return {}


def _stream(wrapped: Any, graph: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generator[Any, None, Any]:
    return stepped(_inside(graph, args, kwargs), wrapped(*args, **kwargs))


def _astream(wrapped: Any, graph: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncGenerator[Any, None]:
    return stepped_async(_inside(graph, args, kwargs), wrapped(*args, **kwargs))


def _inside(graph: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inside:
    config = (args[1] if len(args) > 1 else kwargs.get("config")) or {}
    thread = (config.get("configurable") or {}).get("thread_id")
    hint = Hint(
        agent_name=None if graph.name == _UNNAMED else graph.name,
        conversation=None if thread is None else str(thread),
    )
    runs_tools = any(type(getattr(node, "bound", None)).__name__ == "ToolNode" for node in graph.nodes.values())

    @contextmanager
    def inside() -> Iterator[None]:
        with hint.fresh(), tools.counted_by_framework() if runs_tools else nullcontext():
            try:
                yield
            except RecursionError as error:
                if type(error).__name__ == "GraphRecursionError":
                    _limit_reached()
                raise

    return inside


def _run(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    task = args[0] if args else kwargs.get("task")
    with Hint(step=getattr(task, "name", None)):
        result = wrapped(*args, **kwargs)
    _look_for_a_limit(task)
    return result


async def _arun(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    task = args[0] if args else kwargs.get("task")
    with Hint(step=getattr(task, "name", None)):
        result = await wrapped(*args, **kwargs)
    _look_for_a_limit(task)
    return result


def _look_for_a_limit(task: Any) -> None:
    """Fails the task of the host when this node ended the agent because it may not go on."""
    try:
        gave_up = any(_gives_up(task.name, channel, value) for channel, value in task.writes)
    except Exception:  # noqa: BLE001 - the graph must go on whatever its nodes write
        warn_once("langgraph", "Meterhouse could not look at what a node of LangGraph wrote.", with_trace=True)
        return
    if gave_up:
        _limit_reached()


def _limit_reached() -> None:
    if tools.current() is None:  # an agent that is another's tool leaves the judgement to that one
        fail_task()


def _gives_up(node: str, channel: str, value: Any) -> bool:
    if channel == "jump_to":
        return value == "end" and node.startswith(_LIMITS)
    if channel != "messages" or not isinstance(value, list) or not value:
        return False
    return getattr(value[-1], "content", None) == _NEED_MORE_STEPS
