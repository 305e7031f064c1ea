"""What Bedrock sends over the wire: answers of Converse and of Anthropic's models, frames of an event stream."""

import base64
import json
import struct
import zlib

KEYS = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
SONNET = "us.anthropic.claude-sonnet-5-v1:0"
ASK = {"modelId": SONNET, "messages": [{"role": "user", "content": [{"text": "a secret question"}]}]}
USAGE = {
    "inputTokens": 40,
    "outputTokens": 40,
    "totalTokens": 140,
    "cacheReadInputTokens": 60,
    "cacheReadInputTokenCount": 60,
    "cacheWriteInputTokens": 0,
    "cacheWriteInputTokenCount": 0,
}
BUCKETS = {"llm.requests": 1, "llm.tokens.input": 40, "llm.tokens.cache_read": 60, "llm.tokens.output": 40}
ANSWER = {
    "metrics": {"latencyMs": 551},
    "output": {"message": {"role": "assistant", "content": [{"text": "a secret answer"}]}},
    "stopReason": "end_turn",
    "usage": USAGE,
}
MESSAGE = {
    "id": "msg_bdrk_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5",
    "content": [{"type": "text", "text": "a secret answer"}],
    "stop_reason": "end_turn",
    "usage": {
        "input_tokens": 40,
        "cache_read_input_tokens": 60,
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
        "output_tokens": 40,
        "output_tokens_details": {"thinking_tokens": 25},
    },
}
MESSAGE_BUCKETS = {
    "llm.requests": 1,
    "llm.tokens.input": 40,
    "llm.tokens.cache_read": 60,
    "llm.tokens.cache_write": 30,
    "llm.tokens.output": 15,
    "llm.tokens.reasoning": 25,
}
COUNTED = [("x-amzn-bedrock-input-token-count", "40"), ("x-amzn-bedrock-output-token-count", "39")]


def frame(payload, **headers):
    """One message of application/vnd.amazon.eventstream, with its two checksums."""
    head = b""
    for name, value in headers.items():
        name = ":" + name.replace("_", "-")
        head += struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
    body = json.dumps(payload).encode()
    prelude = struct.pack("!II", 16 + len(head) + len(body), len(head))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + head + body
    return message + struct.pack("!I", zlib.crc32(message))


def event(kind, **payload):
    return frame(payload, event_type=kind, content_type="application/json", message_type="event")


def chunk(**payload):
    return event("chunk", bytes=base64.b64encode(json.dumps(payload).encode()).decode(), p="abcdefgh")


def exception(kind, message):
    return frame({"message": message}, exception_type=kind, content_type="application/json", message_type="exception")


START = [
    event("messageStart", role="assistant", p="ab"),
    event("contentBlockDelta", contentBlockIndex=0, delta={"text": "a secret "}, p="abc"),
]
STREAM = [
    *START,
    event("contentBlockDelta", contentBlockIndex=0, delta={"text": "answer"}, p="abcd"),
    event("contentBlockStop", contentBlockIndex=0, p="a"),
    event("messageStop", stopReason="end_turn", p="a"),
    event("metadata", metrics={"latencyMs": 551}, usage=USAGE, p="a"),
]
MESSAGE_START = chunk(
    type="message_start",
    message={
        **MESSAGE,
        "content": [],
        "usage": {**MESSAGE["usage"], "output_tokens": 1, "output_tokens_details": None},
    },
)
MESSAGE_STREAM = [
    MESSAGE_START,
    chunk(type="content_block_delta", index=0, delta={"type": "text_delta", "text": "a secret answer"}),
    chunk(type="message_delta", delta={}, usage={"output_tokens": 12}),
    chunk(
        type="message_delta", delta={}, usage={"output_tokens": 40, "output_tokens_details": {"thinking_tokens": 25}}
    ),
    chunk(
        type="message_stop",
        **{"amazon-bedrock-invocationMetrics": {"inputTokenCount": 40, "outputTokenCount": 39, "invocationLatency": 9}},
    ),
]


def events_reply(provider, frames, *, headers=(), gate=None, gate_before=0, cut=False):
    """Event stream frames over HTTP chunks whose edges are not those of the frames."""

    def reply(handler, _body):
        handler.send_response(200)
        for name, value in [
            ("content-type", "application/vnd.amazon.eventstream"),
            ("transfer-encoding", "chunked"),
            ("x-amzn-requestid", "req-1"),
            *headers,
        ]:
            handler.send_header(name, value)
        handler.end_headers()
        try:
            for index, one in enumerate(frames):
                if gate is not None and index == gate_before:
                    gate.wait(20)
                for piece in (one[:5], one[5:]):
                    handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    handler.wfile.flush()
            if not cut:
                handler.wfile.write(b"0\r\n\r\n")
        except OSError:
            pass
        handler.close_connection = True

    provider.replies.append(reply)


def body_reply(provider, document, *, status=200, headers=()):
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    named = [("x-amzn-requestid", "req-1"), *headers]
    provider.replies.append(lambda handler, _: handler.answer(status, content, "application/json", named))
