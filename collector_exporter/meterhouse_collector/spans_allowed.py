"""What is kept of a trace request: enough to meter its LLM and tool calls, and no text of anybody's.

Spans of GenAI instrumentations carry prompts, completions and tool arguments. They are reduced to an allow-list before
they are journalled; what is not on it is never stored. The names are those of three conventions, as their packages have
them: OpenTelemetry's (opentelemetry-semantic-conventions 0.66b2, with the deprecated names that are still sent),
OpenLLMetry's (opentelemetry-semantic-conventions-ai 0.5.1) and OpenInference's (its semantic-conventions 0.1.42).
"""

import math
import re
from collections.abc import Collection, Iterable
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TEXT_BYTES: Final = 256
"""Of an identifier. Of a longer one a little more than this is kept: it stays too long, and is seen to be."""

SPAN_ATTRIBUTES: Final = frozenset(
    {
        "customer.id",
        "cache.ttl",
        "error.type",
        "server.address",
        "service.tier",
        # OpenTelemetry
        "gen_ai.agent.id",
        "gen_ai.agent.name",
        "gen_ai.agent.version",
        "gen_ai.conversation.id",
        "gen_ai.openai.request.service_tier",
        "gen_ai.openai.response.service_tier",
        "gen_ai.operation.name",
        "gen_ai.output.type",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "gen_ai.response.id",
        "gen_ai.response.model",
        "gen_ai.system",
        "gen_ai.token.modality",
        "gen_ai.token.type",
        "gen_ai.tool.call.id",
        "gen_ai.tool.name",
        "gen_ai.tool.type",
        "gen_ai.workflow.name",
        "openai.request.service_tier",
        "openai.response.service_tier",
        # OpenLLMetry
        "llm.request.type",
        "traceloop.association.properties.customer.id",
        "traceloop.association.properties.customer_id",
        "traceloop.entity.name",
        "traceloop.span.kind",
        "traceloop.workflow.name",
        # OpenInference
        "agent.name",
        "embedding.model_name",
        "llm.model_name",
        "llm.provider",
        "llm.request.model_name",
        "llm.response.model_name",
        "llm.system",
        "openinference.span.kind",
        "session.id",
        "tool.id",
        "tool.name",
    }
)
"""Names of what is an identifier or a choice of few. `user.id`, `gen_ai.user` and `llm.user` are persons: not here."""
COUNTS: Final = ("gen_ai.usage.", "llm.usage.", "llm.token_count.")
"""What begins so is a number."""
RESOURCE_ATTRIBUTES: Final = frozenset(
    {
        "customer.id",
        "deployment.environment",
        "deployment.environment.name",
        "gen_ai.agent.id",
        "gen_ai.agent.name",
        "service.instance.id",
        "service.name",
        "service.namespace",
        "service.version",
        "telemetry.sdk.language",
        "telemetry.sdk.name",
        "telemetry.sdk.version",
    }
)
OURS: Final = "meterhouse."
"""What begins so is ours, on spans and resources."""

_RESPONSE_ID: Final = "gen_ai.response.id"
_ANSWERED: Final = (_RESPONSE_ID, "openinference.span.kind", "output.value")
_IDS_IN_ANSWERS: Final = tuple(
    re.compile(rf'"id": ?"({prefix}[A-Za-z0-9_-]{{1,200}})"') for prefix in ("(?:chatcmpl-|resp_)", "msg_")
)
"""The id of an answer of OpenAI, else of Anthropic. Inside of a text of the model its quotes would have backslashes."""
_NUMBER: Final = re.compile(r"[-+0-9.eE]{1,40}")
_ID_BYTES: Final = 32  # a trace id has 16, a span id 8: what is longer is still seen to be
_SCALARS: Final = frozenset({"bool_value", "int_value", "double_value"})


def reduce_traces(message: Any, further: Collection[str] = ()) -> bytes:
    """A serialized ExportTraceServiceRequest with nothing of `message` but what is on the list, in the same order.

    Kept of every span: ids, kind, times, status code; of one with any allowed attribute also its name and those.
    Events, links, states and texts of statuses go. `further` names more attributes, such as the one that holds the
    customer. A count that is no number becomes NaN, so that it is held in suspense later and not missed.
    """
    kept = ExportTraceServiceRequest()
    for resource_spans in message.resource_spans:
        resource = kept.resource_spans.add()
        _keep(resource_spans.resource.attributes, resource.resource.attributes, RESOURCE_ATTRIBUTES, further)
        for scope_spans in resource_spans.scope_spans:
            scope = resource.scope_spans.add()
            scope.scope.name, scope.scope.version = _cut(scope_spans.scope.name), _cut(scope_spans.scope.version)
            for span in scope_spans.spans:
                _keep_span(span, scope.spans.add(), further)
    return kept.SerializeToString()


def _keep_span(span: Any, kept: Any, further: Collection[str]) -> None:
    kept.trace_id, kept.span_id = span.trace_id[:_ID_BYTES], span.span_id[:_ID_BYTES]
    kept.parent_span_id = span.parent_span_id[:_ID_BYTES]
    kept.kind, kept.status.code = span.kind, span.status.code
    kept.start_time_unix_nano, kept.end_time_unix_nano = span.start_time_unix_nano, span.end_time_unix_nano
    _keep(span.attributes, kept.attributes, SPAN_ATTRIBUTES, further)
    _keep_response_id(span.attributes, kept.attributes)
    if kept.attributes:
        # The name of any other span may be an address with a person in it, and says nothing of usage.
        kept.name = _cut(span.name)


def _keep(attributes: Iterable[Any], kept: Any, allowed: Collection[str], further: Collection[str]) -> None:
    for attribute in attributes:
        key = attribute.key
        if key.startswith(COUNTS):
            _keep_count(attribute, kept)
        elif key in allowed or key in further or key.startswith(OURS):
            _keep_scalar(attribute, kept)


def _keep_response_id(attributes: Iterable[Any], kept: Any) -> None:
    """OpenInference names no response, but its spans of LLM calls hold the provider's answer: its id, and only that."""
    told = {one.key: one.value.string_value for one in attributes if one.key in _ANSWERED}
    if _RESPONSE_ID in told or told.get("openinference.span.kind", "").upper() != "LLM":
        return
    answer = told.get("output.value", "")
    if found := next(filter(None, (pattern.search(answer) for pattern in _IDS_IN_ANSWERS)), None):
        kept.add(key=_RESPONSE_ID).value.string_value = found[1]


def _keep_count(attribute: Any, kept: Any) -> None:
    value = attribute.value
    which = value.WhichOneof("value")
    one = kept.add(key=_cut(attribute.key))
    if which in ("int_value", "double_value") or (which == "string_value" and _NUMBER.fullmatch(value.string_value)):
        one.value.CopyFrom(value)
    else:
        one.value.double_value = math.nan


def _keep_scalar(attribute: Any, kept: Any) -> None:
    value = attribute.value
    which = value.WhichOneof("value")
    if which == "string_value":
        kept.add(key=_cut(attribute.key)).value.string_value = _cut(value.string_value)
    elif which in _SCALARS:
        kept.add(key=_cut(attribute.key)).value.CopyFrom(value)


def _cut(text: str) -> str:
    raw = text.encode()
    # Four bytes more than may be, so that a cut inside of a character leaves more than may be, too.
    return text if len(raw) <= TEXT_BYTES else raw[: TEXT_BYTES + 4].decode(errors="ignore")
