"""smolagents: tool executions, the agent and step of its model calls, and models that it alone sees.

Tools: `Tool.__call__`, in tool calls as in the code that a CodeAgent runs; `final_answer` ends the run and is none.
Model calls: `generate` and `generate_stream` of every model class. Usage as in `smolagents.monitoring.TokenUsage`:
input and output tokens, nothing of their parts; that of a stream is the sum over its pieces.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from meterhouse import patches, tools
from meterhouse.attribution import Hint, fail_task
from meterhouse.carrying import carry
from meterhouse.frameworks import streams, subclasses
from meterhouse.frameworks.model_calls import ModelCall, Told

_FINAL = "final_answer"


def install(module: ModuleType) -> None:
    """Patch the tools, the models, the agents, or the thread that code runs in: whichever this module defines."""
    name = module.__name__.rpartition(".")[2]
    if name == "tools":
        patches.wrap(module, "Tool.__call__", _execute)
        subclasses.wrap(module.Tool, _TOOL)
    elif name == "models":
        subclasses.wrap(module.Model, _MODEL)
    elif name == "agents":
        patches.wrap(module, "MultiStepAgent._handle_max_steps_reached", _limit_reached)
        patches.wrap(module, "MultiStepAgent._generate_planning_step", _steps)
        patches.wrap(module, "MultiStepAgent.provide_final_answer", _final_answer)
        subclasses.wrap(module.MultiStepAgent, _AGENT)
    elif hasattr(module, "timeout"):  # before 1.24 the code runs in the thread that called
        patches.wrap(module, "timeout", _in_a_thread)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    name = module.__name__.rpartition(".")[2]
    if name == "tools":
        patches.unwrap(module.Tool, "__call__")
        subclasses.unwrap(module.Tool, _TOOL)
    elif name == "models":
        subclasses.unwrap(module.Model, _MODEL)
    elif name == "agents":
        for method in ("_handle_max_steps_reached", "_generate_planning_step", "provide_final_answer"):
            patches.unwrap(module.MultiStepAgent, method)
        subclasses.unwrap(module.MultiStepAgent, _AGENT)
    else:
        patches.unwrap(module, "timeout")


def _execute(wrapped: Any, tool: Any, args: Any, kwargs: Any) -> Any:
    name = getattr(tool, "name", None) or type(tool).__name__
    if name == _FINAL:
        return wrapped(*args, **kwargs)
    with tools.executing(name):
        return wrapped(*args, **kwargs)


def _steps(wrapped: Any, agent: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    hint = _hint(agent)
    return streams.stepped(lambda: _inside(hint), wrapped(*args, **kwargs))


def _final_answer(wrapped: Any, agent: Any, args: Any, kwargs: Any) -> Any:
    with _inside(_hint(agent)):
        return wrapped(*args, **kwargs)


def _limit_reached(wrapped: Any, _agent: Any, args: Any, kwargs: Any) -> Any:
    fail_task()
    return wrapped(*args, **kwargs)


@contextmanager
def _inside(hint: Hint) -> Iterator[None]:
    """What an agent does with the model and its tools."""
    with hint.fresh(), tools.counted_by_framework():
        yield


def _hint(agent: Any) -> Hint:
    step = getattr(agent, "step_number", None)
    return Hint(agent_name=getattr(agent, "name", None), step=str(step) if isinstance(step, int) else None)


def _whole(wrapped: Any, model: Any, args: Any, kwargs: Any) -> Any:
    call = _model_call(model)
    call.admit()
    with call.making(counts_tools=False):
        message = wrapped(*args, **kwargs)
    call.end(lambda: _told(message))
    return message


def _streamed(wrapped: Any, model: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    call = _model_call(model)
    call.admit()
    return streams.watched(call, wrapped(*args, **kwargs), _Tally(), counts_tools=False)


class _Tally(streams.Tally):
    """The sum over the pieces, as smolagents itself counts a stream."""

    def __init__(self) -> None:
        self._input = self._output = 0

    def take(self, piece: Any) -> None:
        usage = getattr(piece, "token_usage", None)
        if usage is not None:
            self._input += usage.input_tokens or 0
            self._output += usage.output_tokens or 0

    def told(self) -> Told:
        return {"usage": {"input": self._input, "output": self._output}}


def _model_call(model: Any) -> ModelCall:
    return ModelCall(type(model).__name__, getattr(model, "model_id", None))


def _told(message: Any) -> Told:
    usage = getattr(message, "token_usage", None)
    return {} if usage is None else {"usage": {"input": usage.input_tokens, "output": usage.output_tokens}}


def _in_a_thread(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Callable[..., Any]:
    """`timeout` decorates what runs in a thread of its own, which knows not for whom."""
    decorate = wrapped(*args, **kwargs)
    return lambda function: lambda *a, **k: decorate(carry(function))(*a, **k)


_TOOL = {"__call__": _execute}
_MODEL = {"generate": _whole, "generate_stream": _streamed}
_AGENT = {"_step_stream": _steps}
