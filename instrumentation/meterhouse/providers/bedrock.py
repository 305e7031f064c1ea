"""AWS Bedrock through boto3 and aiobotocore: `_make_api_call` of their clients, once per logical call.

Metered are the operations of `bedrock-runtime` that run a model; every other service, and what else this one has
(guardrails, counting tokens), passes. `start_async_invoke` counts as a request: its usage is never told to the caller.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from meterhouse import patches
from meterhouse.call import new_call_id
from meterhouse.metered import Metered, Request, current, start, start_async
from meterhouse.providers import bedrock_bodies, bedrock_families
from meterhouse.tools import ToolResult
from meterhouse.trouble import warn_once

READER = bedrock_families.Bedrock()
_SERVICE = "bedrock-runtime"
_OPERATIONS = frozenset(
    {"Converse", "ConverseStream", "InvokeModel", "InvokeModelWithResponseStream", "StartAsyncInvoke"}
)
_PATCHED = ("_make_api_call", "_make_request")


class _Sent(Metered):
    """A call of Bedrock that is under way, and how it is named to the provider."""

    request_id = ""

    def attach(self, operation: str, parsed: Any) -> None:
        """Listen to what the host gets; never raises."""
        try:
            self._attach(operation, parsed)
        except Exception:  # noqa: BLE001 - the host's answer must reach it
            warn_once("response", "Meterhouse could not read a response.", with_trace=True)

    def _attach(self, operation: str, parsed: Mapping[str, Any]) -> None:
        metadata = parsed.get("ResponseMetadata") or {}
        headers = metadata.get("HTTPHeaders") or {}
        self.answer.response_id = metadata.get("RequestId")
        counted = bedrock_families.counted(headers)
        if counted:
            self.take(counted, bedrock_families.METRICS)
        if operation.startswith("InvokeModel"):
            self.take(bedrock_families.tier_of_headers(headers))
        stream = parsed.get("stream" if operation == "ConverseStream" else "body")
        if hasattr(stream, "_event_generator"):
            bedrock_bodies.listen_to_events(self, stream)
        elif operation == "InvokeModel" and not (counted and bedrock_families.embeds(self.answer.model)):
            length = headers.get("content-length")
            bedrock_bodies.listen_to_body(self, stream, int(length) if length else None)
        else:
            self.take(parsed)
            self.end(exhausted=True)


class _Sending:
    """One call about to go out."""

    def __init__(self, client: Any, operation: str, params: Any) -> None:
        self._client = client
        self._operation = operation
        self._params: Mapping[str, Any] = params if isinstance(params, Mapping) else {}
        self._call_id = new_call_id()
        self._model = bedrock_families.model_id(self._params.get("modelId"))
        self._request_id = str(uuid.UUID(self._call_id))

    def describe(self) -> Request:
        """What `metered.start` wants to know."""
        named = "chat"
        if self._operation.startswith("InvokeModel"):
            named = bedrock_families.operation(self._model, self._params.get("body"))
        elif self._operation == "StartAsyncInvoke":
            named = "async_invoke"
        return Request(
            provider=READER.name,
            operation=named,
            model=self._model,
            server=urlsplit(self._client.meta.endpoint_url).hostname or "",
            request_id=self._request_id,
            call_id=self._call_id,
            tool_results=self._tool_results,
        )

    def mark(self, metered: _Sent) -> None:
        """The answer need not name the model."""
        metered.answer.model = self._model or None
        metered.request_id = self._request_id

    def _tool_results(self) -> Iterable[ToolResult]:
        body = self._params.get("body")
        if body is None:
            return READER.tool_results(self._params)
        document = json.loads(body) if bedrock_families.may_hold_results(body) else None
        return READER.tool_results(document) if isinstance(document, dict) else ()


def install(module: ModuleType) -> None:
    """Patch the client class of `botocore.client` or of `aiobotocore.client`."""
    call = _call_async if hasattr(module, "AioBaseClient") else _call
    for method, wrapper in zip(_PATCHED, (call, _name), strict=True):
        patches.wrap(_owner(module), method, wrapper)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    for method in _PATCHED:
        patches.unwrap(_owner(module), method)


def _owner(module: ModuleType) -> Any:
    return getattr(module, "AioBaseClient", None) or module.BaseClient


def _call(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = _model_call(client, args, kwargs)
    if given is None:
        return wrapped(*args, **kwargs)
    sending = _Sending(client, *given)
    metered = start(_Sent, READER, sending.describe)
    if metered is None:
        return wrapped(*args, **kwargs)
    sending.mark(metered)
    with metered.requesting():
        parsed = wrapped(*args, **kwargs)
    metered.attach(given[0], parsed)
    return parsed


def _call_async(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """No coroutine function, so that the calls of other services have no further coroutine around them."""
    given = _model_call(client, args, kwargs)
    if given is None:
        return wrapped(*args, **kwargs)
    return _metered_async(partial(wrapped, *args, **kwargs), client, *given)


async def _metered_async(call: Callable[[], Any], client: Any, operation: str, params: Any) -> Any:
    sending = _Sending(client, operation, params)
    metered = await start_async(_Sent, READER, sending.describe)
    if metered is None:
        return await call()
    sending.mark(metered)
    with metered.requesting():
        parsed = await call()
    metered.attach(operation, parsed)
    return parsed


def _model_call(client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Operation and parameters of a call that runs a model."""
    named = dict(zip(("operation_name", "api_params"), args, strict=False)) | dict(kwargs)
    operation = named.get("operation_name")
    if operation not in _OPERATIONS or "api_params" not in named or not _is_bedrock(client):
        return None
    return operation, named["api_params"]


def _is_bedrock(client: Any) -> bool:
    try:
        return bool(client.meta.service_model.service_name == _SERVICE)
    except AttributeError:  # no client that botocore made
        return False


def _name(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Gives our request id to the header `amz-sdk-invocation-id`, which all retries of a call share anyway."""
    metered = current()
    if isinstance(metered, _Sent) and _is_bedrock(client):
        context = args[2] if len(args) > 2 else kwargs.get("request_context")
        if isinstance(context, dict):
            context.setdefault("retries", {}).setdefault("invocation-id", metered.request_id)
    return wrapped(*args, **kwargs)
