"""Small hosts: what a program does with an SDK, and all that it sees of it. Every secret that it has is in SECRETS.

To add one: a function decorated with `host("library", reply, ...)`; it gets the provider's URL and returns plain data.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

SYSTEM, PROMPT, ANSWER = "canary-system-1f0", "canary-prompt-2e1", "canary-answer-3d2"
ARGUMENT, RESULT, EMAIL = "canary-argument-4c3", "canary-result-5b4", "canary.person@example.com"
KEY, TROUBLE = "sk-canary-key-6a5", "canary-trouble-7f6"
SECRETS = (SYSTEM, PROMPT, ANSWER, ARGUMENT, RESULT, EMAIL, KEY, TROUBLE)

CHAT_USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
TOOL_CALL = {
    "id": "call_a1b2c3d4e5",
    "type": "function",
    "function": {"name": "look_up", "arguments": json.dumps({"q": ARGUMENT})},
}
MESSAGES = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": f"{PROMPT} {EMAIL}"},
    {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
    {"role": "tool", "tool_call_id": "call_a1b2c3d4e5", "content": RESULT},
]
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {"role": "assistant", "content": ANSWER, "tool_calls": [TOOL_CALL]},
        }
    ],
    "usage": CHAT_USAGE,
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [
        {"type": "text", "text": ANSWER},
        {"type": "tool_use", "id": "toolu_0123456789", "name": "look_up", "input": {"q": ARGUMENT}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 9, "output_tokens": 3},
}
CONVERSE = {
    "output": {"message": {"role": "assistant", "content": [{"text": ANSWER}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 9, "outputTokens": 3, "totalTokens": 12},
    "metrics": {"latencyMs": 1},
}
GEMINI = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": ANSWER}]}, "finishReason": "STOP", "index": 0}],
    "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 3, "totalTokenCount": 12},
    "modelVersion": "gemini-x",
    "responseId": "r-1",
}


def json_of(document, status=200):
    return lambda provider: provider.json(document, status)


def chunk(text=None, usage=None):
    choices = (
        [] if text is None else [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]
    )
    document = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-5-mini",
        "choices": choices,
    }
    return b"data: " + json.dumps(document | ({"usage": usage} if usage else {})).encode() + b"\n\n"


def chat_stream(*tail, cut=False):
    """As OpenAI streams: the usage chunk only where the request asked for it."""

    def reply(provider):
        def answer(handler, body):
            asked = (body.get("stream_options") or {}).get("include_usage")
            usage = [chunk(usage=CHAT_USAGE)] if asked and not cut else []
            provider.stream(
                [chunk(ANSWER[:8]), chunk(ANSWER[8:]), *tail, *usage, *([] if cut else [b"data: [DONE]\n\n"])], cut=cut
            )
            provider.replies.pop()(handler, body)

        provider.replies.append(answer)

    return reply


def sse(*events):
    return lambda provider: provider.stream([f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events])


MESSAGE_STREAM = sse(
    {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": ANSWER}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 3},
    },
    {"type": "message_stop"},
)
ERROR = {"error": {"message": f"{TROUBLE}: {PROMPT} {KEY}", "type": "server_error", "code": "x"}}


@dataclass(frozen=True)
class Host:
    library: str
    replies: tuple
    program: Callable[[str], object]


HOSTS: dict[str, Host] = {}


def host(library, *replies):
    def add(program):
        HOSTS[program.__name__] = Host(library, replies, program)
        return program

    return add


def seen(value):
    """What a host can tell of an object of an SDK: its type and its content."""
    return type(value).__module__, type(value).__name__, value.model_dump(mode="json")


def openai_client(url, **options):
    import openai

    return openai.OpenAI(api_key=KEY, base_url=f"{url}/v1", **{"max_retries": 0, **options})


def ask(url, **more):
    return openai_client(url).chat.completions.create(model="gpt-5-mini", messages=MESSAGES, **more)


@host("openai", json_of(CHAT))
def openai_chat(url):
    return seen(ask(url, temperature=0.5))


@host("openai", json_of(CHAT))
def openai_raw_response(url):
    raw = openai_client(url).chat.completions.with_raw_response.create(model="gpt-5-mini", messages=MESSAGES)
    return (
        type(raw).__name__,
        raw.status_code,
        raw.http_response.content,
        seen(raw.parse()),
        raw.http_response.is_closed,
    )


@host("openai", chat_stream())
def openai_stream(url):
    stream = ask(url, stream=True)
    return type(stream).__name__, [seen(one) for one in stream], stream.response.is_closed


@host("openai", chat_stream())
def openai_stream_with_usage_asked_for_by_the_host(url):
    return [seen(one) for one in ask(url, stream=True, stream_options={"include_usage": True})]


@host("openai", chat_stream())
def openai_stream_left_early(url):
    stream = ask(url, stream=True)
    first = seen(next(stream))
    stream.close()
    return first, stream.response.is_closed


@host("openai", chat_stream(cut=True))
def openai_stream_cut_off(url):
    return [seen(one) for one in ask(url, stream=True)]


@host("openai", chat_stream(b"data: {" + TROUBLE.encode() + b"\n\n"))
def openai_stream_with_rubbish_in_it(url):
    return [seen(one) for one in ask(url, stream=True)]


@host("openai", json_of(ERROR, 500))
def openai_server_error(url):
    return ask(url)


@host("openai", json_of(ERROR, 400))
def openai_bad_request(url):
    return ask(url)


@host("openai", json_of(ERROR, 400), json_of(ERROR, 400))
def openai_bad_stream_request(url):
    return ask(url, stream=True)


@host("openai", json_of(ERROR, 500), json_of(CHAT))
def openai_retried(url):
    return seen(openai_client(url, max_retries=1).chat.completions.create(model="gpt-5-mini", messages=MESSAGES))


@host("openai")
def openai_wrong_arguments(url):
    return openai_client(url).chat.completions.create(model="gpt-5-mini")


@host("openai", json_of(CHAT), chat_stream())
def openai_async(url):
    import openai

    async def work():
        async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=0) as client:
            first = seen(await client.chat.completions.create(model="gpt-5-mini", messages=MESSAGES))
            stream = await client.chat.completions.create(model="gpt-5-mini", messages=MESSAGES, stream=True)
            return first, [seen(one) async for one in stream]

    return asyncio.run(work())


def anthropic_client(url):
    import anthropic

    return anthropic.Anthropic(api_key=KEY, base_url=url, max_retries=0)


ANTHROPIC = {
    "model": "claude-x",
    "max_tokens": 9,
    "system": SYSTEM,
    "messages": [
        {"role": "user", "content": f"{PROMPT} {EMAIL}"},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_9876543210", "name": "look_up", "input": {"q": ARGUMENT}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_9876543210", "content": RESULT}]},
    ],
}


@host("anthropic", json_of(MESSAGE))
def anthropic_message(url):
    return seen(anthropic_client(url).messages.create(**ANTHROPIC))


@host("anthropic", MESSAGE_STREAM)
def anthropic_stream(url):
    with anthropic_client(url).messages.stream(**ANTHROPIC) as stream:
        return list(stream.text_stream), seen(stream.get_final_message())


@host("anthropic", json_of({"type": "error", "error": {"type": "overloaded_error", "message": TROUBLE}}, 529))
def anthropic_overloaded(url):
    return anthropic_client(url).messages.create(**ANTHROPIC)


@host("google.genai", json_of(GEMINI))
def gemini(url):
    from google import genai

    client = genai.Client(api_key=KEY, http_options={"base_url": url})
    answer = client.models.generate_content(model="gemini-x", contents=PROMPT, config={"system_instruction": SYSTEM})
    return type(answer).__name__, answer.text, answer.usage_metadata.total_token_count


@host("boto3", json_of(CONVERSE))
def bedrock_converse(url):
    import boto3

    client = boto3.client(
        "bedrock-runtime", endpoint_url=url, region_name="eu-west-1", aws_access_key_id="a", aws_secret_access_key=KEY
    )
    answer = client.converse(
        modelId="some-model", system=[{"text": SYSTEM}], messages=[{"role": "user", "content": [{"text": PROMPT}]}]
    )
    return {key: value for key, value in answer.items() if key != "ResponseMetadata"}


@host(
    "langchain_openai",
    json_of(CHAT),
    json_of(
        {
            **CHAT,
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}],
        }
    ),
)
def langchain_agent(url):
    from langchain.agents import create_agent
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def look_up(q: str) -> str:
        """Looks something up."""
        return f"{RESULT} for {q}"

    model = ChatOpenAI(model="gpt-5-mini", api_key=KEY, base_url=f"{url}/v1", max_retries=0)
    agent = create_agent(model, [look_up], system_prompt=SYSTEM)
    found = agent.invoke({"messages": [("user", PROMPT)]})["messages"]
    return [(type(one).__name__, one.content) for one in found]


@host("mcp")
def mcp_tools(_url):
    try:
        from mcp.server.mcpserver import MCPServer
    except ImportError:  # 1.x
        from mcp.server.fastmcp import FastMCP as MCPServer
    server = MCPServer("tools")

    @server.tool()
    def look_up(q: str) -> str:
        return f"{RESULT} for {q}"

    @server.tool()
    def broken(q: str) -> str:
        raise RuntimeError(f"{TROUBLE} {q}")

    def connected():
        try:
            from mcp.client import Client
        except ImportError:
            from mcp.shared.memory import create_connected_server_and_client_session

            return create_connected_server_and_client_session(server._mcp_server)
        return Client(server)

    async def work():
        async with connected() as session:
            good = await session.call_tool("look_up", {"q": ARGUMENT})
            bad = await session.call_tool("broken", {"q": ARGUMENT})
            return seen(good), seen(bad)

    return asyncio.run(work())


@host("langchain_openai", json_of(CHAT), chat_stream(), json_of(ERROR, 500))
def langchain_tools_and_stream(url):
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def look_up(q: str) -> str:
        """Looks up."""
        return f"{RESULT} for {q}"

    @tool
    def broken(q: str) -> str:
        """Fails."""
        raise RuntimeError(f"{TROUBLE} {q}")

    broken.handle_tool_error = True
    model = ChatOpenAI(model="gpt-5-mini", api_key=KEY, base_url=f"{url}/v1", max_retries=0)
    question = [("system", SYSTEM), ("user", PROMPT)]
    answer = model.invoke(question)
    shown = [one.model_dump(exclude={"id"}) for one in model.stream(question)]
    results = [look_up.invoke(call).model_dump() for call in answer.tool_calls]
    errors = [outcome(lambda _: broken.invoke({"q": ARGUMENT}), url), outcome(lambda _: model.invoke(question), url)]
    return answer.model_dump(exclude={"id"}), shown, results, errors


@host(
    "agents",
    json_of(CHAT),
    json_of({**CHAT, "choices": [{**CHAT["choices"][0], "message": {"role": "assistant", "content": ANSWER}}]}),
)
def openai_agents_tool(url):
    import openai
    from agents import Agent, OpenAIChatCompletionsModel, RunConfig, Runner, function_tool

    @function_tool
    def look_up(q: str) -> str:
        """Looks up."""
        raise RuntimeError(f"{TROUBLE} {q}")

    async def work():
        async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=0) as client:
            model = OpenAIChatCompletionsModel(model="gpt-5-mini", openai_client=client)
            agent = Agent(name="helper", instructions=SYSTEM, model=model, tools=[look_up])
            result = await Runner.run(agent, PROMPT, run_config=RunConfig(tracing_disabled=True))
            return result.final_output, [type(item).__name__ for item in result.new_items], result.to_input_list()

    return asyncio.run(work())


def outcome(program, url):
    """What comes of it, the exception as far as a host can tell one from another."""
    try:
        return "returned", program(url)
    except Exception as error:  # noqa: BLE001 - whatever the SDK raises is what is compared
        causes, cause = [], error
        while cause is not None:
            causes.append((type(cause).__module__, type(cause).__name__, str(cause)))
            cause = cause.__cause__
        return "raised", causes, getattr(error, "status_code", None), getattr(error, "body", None)
