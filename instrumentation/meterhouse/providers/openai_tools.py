"""Tools in OpenAI's documents: what a model asks for, what the provider ran itself, what a host hands back. Pure.

Items of the responses API as in https://platform.openai.com/docs/api-reference/responses/object.
"""

from collections.abc import Mapping
from typing import Any

from meterhouse.events import Row
from meterhouse.tools import ToolResult
from meterhouse.usage import MAPPING, Answer, count, text
from meterhouse.vocabulary import LLM_CODE_EXECUTIONS, LLM_FILE_SEARCHES, LLM_IMAGES, LLM_WEB_SEARCHES

HOSTED = {
    "web_search_call": LLM_WEB_SEARCHES,
    "file_search_call": LLM_FILE_SEARCHES,
    "code_interpreter_call": LLM_CODE_EXECUTIONS,
    "image_generation_call": LLM_IMAGES,
}
"""Output items of tools that the provider runs -> the meter that each of them is one of."""
_RESULTS = {
    "function_call_output": "",
    "custom_tool_call_output": "",
    "local_shell_call_output": "local_shell",
    "shell_call_output": "shell",
    "apply_patch_call_output": "apply_patch",
    "computer_call_output": "computer",
}
"""Input items of tools that the host runs -> the tool's name, where it has no name of its own."""
_INPUTS = ("message", "item_reference", "mcp_approval_response", *_RESULTS)


def take_items(items: object, answer: Answer) -> None:
    """Remember output items of a response: the tools that it asks for and those that the provider ran."""
    for item in _mappings(items):
        kind, item_id = text(item, "type") or "", text(item, "id") or ""
        if kind in HOSTED and _billable(kind, item):
            answer.noted.setdefault("hosted", {})[item_id or len(answer.noted["hosted"])] = kind
        call_id = text(item, "call_id")
        if call_id and f"{kind}_output" in _RESULTS:
            answer.tool_calls[call_id] = text(item, "name") or _RESULTS[f"{kind}_output"]


def take_choices(choices: object, answer: Answer) -> None:
    """Remember the tools that a chat's message, or a piece of it, asks for."""
    for choice in _mappings(choices):
        message = choice.get("message") or choice.get("delta")
        if isinstance(message, MAPPING):
            answer.tool_calls.update(_asked_for(message))


def hosted_rows(answer: Answer) -> list[Row]:
    """What the provider's own tools did; its own count of the searches that it bills goes before ours."""
    kinds = list(answer.noted.get("hosted", {}).values())
    rows = {meter: Row(meter, kinds.count(kind)) for kind, meter in HOSTED.items() if kind in kinds}
    searches = count(answer.noted.get("tool_usage", {}), "web_search", "num_requests")
    if searches is not None:
        rows[LLM_WEB_SEARCHES] = Row(LLM_WEB_SEARCHES, searches)
    return list(rows.values())


def results_of_messages(messages: object) -> list[ToolResult]:
    """The tool results that stand behind the last message of the model; `function` is the older form, without an id."""
    found: list[ToolResult] = []
    for message in reversed(_mappings(messages)):
        role = message.get("role")
        if role == "assistant":
            names = _asked_for(message)
            return [ToolResult(one.tool_call_id, one.name or names.get(one.tool_call_id, "")) for one in found[::-1]]
        if role == "tool":
            found.append(ToolResult(text(message, "tool_call_id") or "", text(message, "name") or ""))
        elif role == "function":
            found.append(ToolResult("", text(message, "name") or ""))
    return found[::-1]


def results_of_input(items: object) -> list[ToolResult]:
    """The tool results behind the last item of the model; all of them where the history stays with the provider.

    Some hosts put each result right behind its call, so that the results of one answer stand between the model's items:
    those behind the last message are `earlier` ones.
    """
    listed = _mappings(items)
    names = {text(item, "call_id") or "": text(item, "name") or "" for item in listed if "name" in item}
    found: list[ToolResult] = []
    earlier = False
    for item in reversed(listed):
        kind = text(item, "type") or "message"
        if kind == "message" and (earlier or item.get("role") == "assistant"):
            break
        if kind in _RESULTS:
            call_id = text(item, "call_id") or text(item, "id") or ""
            found.append(ToolResult(call_id, names.get(call_id, "") or _RESULTS[kind], earlier=earlier))
        earlier = earlier or kind not in _INPUTS
    return found[::-1]


def _asked_for(message: Mapping[str, Any]) -> dict[str, str]:
    asked = {}
    for call in _mappings(message.get("tool_calls")):
        kind = text(call, "type") or "function"
        detail = call.get(kind)
        name = text(detail, "name") if isinstance(detail, MAPPING) else None
        call_id = text(call, "id")
        if call_id and name:
            asked[call_id] = name
    return asked


def _billable(kind: str, item: Mapping[str, Any]) -> bool:
    if item.get("status") in ("in_progress", "searching", "interpreting", "generating", "failed"):
        return kind == "image_generation_call" and bool(item.get("result"))
    action = item.get("action")
    return kind != "web_search_call" or not isinstance(action, MAPPING) or action.get("type") in (None, "search")


def _mappings(items: object) -> list[Mapping[str, Any]]:
    # Lists only: an iterator of the host's is not ours to use up.
    return [one for one in items if isinstance(one, MAPPING)] if isinstance(items, list | tuple) else []
