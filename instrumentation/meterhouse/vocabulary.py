"""Names that the agent, the collector, rating and billing share: meters, attributes, statuses, reason codes.

The contract behind them is docs/contracts.md. Nothing here imports anything but the standard library.
"""

from typing import Final

METRIC_PREFIX: Final = "meterhouse."
"""The OTel instrument of a meter is named `meterhouse.<meter>`."""

# Meters (the built-in part; units and definitions stand in meterhouse_store/meters.yaml).
TOKENS: Final = "llm.tokens."
"""What the names of all token meters begin with."""
TOKENS_INPUT: Final = "llm.tokens.input"
TOKENS_CACHE_READ: Final = "llm.tokens.cache_read"
TOKENS_CACHE_WRITE: Final = "llm.tokens.cache_write"
TOKENS_OUTPUT: Final = "llm.tokens.output"
TOKENS_REASONING: Final = "llm.tokens.reasoning"
LLM_REQUESTS: Final = "llm.requests"
TOOL_CALLS: Final = "tool.calls"
LLM_IMAGES: Final = "llm.images"
LLM_AUDIO_SECONDS: Final = "llm.audio.seconds"
LLM_WEB_SEARCHES: Final = "llm.web_searches"
LLM_FILE_SEARCHES: Final = "llm.file_searches"
LLM_CODE_EXECUTIONS: Final = "llm.code_executions"
LLM_PAGES: Final = "llm.pages"
LLM_INPUT_IMAGES: Final = "llm.input_images"
LLM_SEARCH_UNITS: Final = "llm.search_units"
LLM_CLASSIFICATIONS: Final = "llm.classifications"
AGENT_TASKS: Final = "agent.tasks"
AGENT_CONVERSATIONS: Final = "agent.conversations"

# Attributes of the data point: they make the series, so their values are few.
CUSTOMER_ID: Final = "customer.id"
AGENT_ID: Final = "gen_ai.agent.id"
AGENT_NAME: Final = "gen_ai.agent.name"
PROVIDER: Final = "gen_ai.provider.name"
RESPONSE_MODEL: Final = "gen_ai.response.model"
OPERATION: Final = "gen_ai.operation.name"
TOOL_NAME: Final = "gen_ai.tool.name"
MODALITY: Final = "gen_ai.token.modality"
CACHE_TTL: Final = "cache.ttl"
SERVICE_TIER: Final = "service.tier"
STATUS: Final = "meterhouse.status"

POINT_ATTRIBUTES: Final = frozenset(
    {
        CUSTOMER_ID,
        AGENT_ID,
        AGENT_NAME,
        PROVIDER,
        RESPONSE_MODEL,
        OPERATION,
        TOOL_NAME,
        MODALITY,
        CACHE_TTL,
        SERVICE_TIER,
        STATUS,
    }
)

# Attributes of the exemplar: they belong to the one event, any cardinality.
EVENT_ID: Final = "meterhouse.event.id"
CALL_ID: Final = "meterhouse.call.id"
TASK_ID: Final = "meterhouse.task.id"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
STEP: Final = "meterhouse.step"
RESPONSE_ID: Final = "gen_ai.response.id"
REQUEST_MODEL: Final = "gen_ai.request.model"
SERVER_ADDRESS: Final = "server.address"
LEASE_ID: Final = "meterhouse.lease.id"
USAGE_SOURCE: Final = "usage.source"
REQUEST_ID: Final = "meterhouse.request.id"
"""The id that the agent sent to the provider as `X-Client-Request-Id`: matches a call with the provider's log."""

ONCE: Final = "meterhouse.once"
"""`true`: the event's identity has no time. Its id counts once per customer and meter, whenever it is told again."""

# Attributes of the resource.
PROCESS_ID: Final = "meterhouse.process.id"

# Attributes that an agent keeps with an event, and sends once per request on the instrumentation scope.
GRANT: Final = "meterhouse.grant"
"""The signed usage grant that an event was made under (grants.py)."""
GRANTS: Final = "meterhouse.grants"
"""Scope attribute, a list of strings: the distinct grants of the request's events."""

# Values of STATUS.
OK: Final = "ok"
FAILED: Final = "failed"
ABORTED: Final = "aborted"
UNFINISHED: Final = "unfinished"

# Values of USAGE_SOURCE.
REPORTED: Final = "reported"
FRAMEWORK: Final = "framework"
"""No choke point saw the call: a framework told what the provider had reported to it."""
SDK_LOOP: Final = "sdk_loop"
"""A tool that no known layer ran: its result was handed back to the model."""
ESTIMATED: Final = "estimated"
"""Not what a provider reported: worked out from the length of the text, where the operator asked for it."""
NO_USAGE: Final = "none"
"""The provider reported nothing that could be read: the call is counted, its tokens are unknown."""

# Environment of an agent.
ENV_ENDPOINT: Final = "METERHOUSE_ENDPOINT"
ENV_API_KEY: Final = "METERHOUSE_API_KEY"
ENV_TLS_CA: Final = "METERHOUSE_TLS_CA"
ENV_TLS_CLIENT_CERT: Final = "METERHOUSE_TLS_CLIENT_CERT"
ENV_TLS_CLIENT_KEY: Final = "METERHOUSE_TLS_CLIENT_KEY"
ENV_CUSTOMER: Final = "METERHOUSE_CUSTOMER"
ENV_AGENT: Final = "METERHOUSE_AGENT"
ENV_JOURNAL_DIR: Final = "METERHOUSE_JOURNAL_DIR"
ENV_JOURNAL_MAX_BYTES: Final = "METERHOUSE_JOURNAL_MAX_BYTES"
ENV_JOURNAL_FSYNC: Final = "METERHOUSE_JOURNAL_FSYNC"
ENV_EXPORT_INTERVAL_S: Final = "METERHOUSE_EXPORT_INTERVAL_S"
ENV_EXPORT_EVENTS: Final = "METERHOUSE_EXPORT_EVENTS"
ENV_ESTIMATE: Final = "METERHOUSE_ESTIMATE"

# Reason codes of suspense: a row of `events` whose `reason` is not empty is not in `usage`.
REASON_CUSTOMER_MISSING: Final = "customer_missing"
REASON_CUSTOMER_FORBIDDEN: Final = "customer_forbidden"
REASON_GRANT_MISSING: Final = "grant_missing"
"""The key is bound to grants, and no grant for this customer and agent came with the event or could be verified."""
REASON_GRANT_EXPIRED: Final = "grant_expired"
"""The customer's grants had expired at the time of the event."""
REASON_EVENT_ID_MISSING: Final = "event_id_missing"
REASON_BAD_QUANTITY: Final = "bad_quantity"
"""NaN, infinite, negative, more than nine decimals, or larger than 10^15."""
REASON_FRACTION: Final = "fractional_quantity"
"""Part of a unit of a built-in meter of which there are whole ones only, such as half a token."""
REASON_BAD_IDENTIFIER: Final = "bad_identifier"
"""An identifier that is not a string, is longer than 256 bytes, or is given twice."""
REASON_TIME_OUT_OF_RANGE: Final = "time_out_of_range"
"""event_time outside [received_at - 400 d, received_at + 1 d]."""
REASON_EXEMPLARS_MISSING: Final = "exemplars_missing"
"""A meterhouse.* point whose exemplars do not add up to its value: the row carries the difference."""
REASON_OVERFLOW: Final = "series_overflow"
REASON_SOURCE_UNSUPPORTED: Final = "source_unsupported"
REASON_CUMULATIVE_FALL: Final = "cumulative_fall"
"""A running total that is lower than before, without a new start time: what it counts since is not known."""
REASON_CUMULATIVE_CONFLICT: Final = "cumulative_conflict"
"""Another running total for a time of which one was received before: the row carries the difference."""
REASON_SPAN_AMBIGUOUS: Final = "span_ambiguous"
"""A span whose response id a span of another trace has, too, within a day: the same call, or two."""
REASON_CONFLICT: Final = "conflict"
REASON_UNREADABLE: Final = "unreadable_record"

# Reason codes of what is neither usage nor suspense.
REASON_TWIN: Final = "twin"
"""A span of a call that is metered by another row."""
REASON_DISCARDED: Final = "discarded"
"""A decision took it out of suspense for good."""
REASON_RETRACTED: Final = "retracted"
"""A decision took it out of usage."""
