"""A `claude` program for the Agent SDK: speaks its stream-json protocol and plays the turns that a test gives it.

FAKE_CLAUDE holds the turns as JSON: for each prompt a list of lines to send. Besides messages there are
{"mcp": [server, tool, arguments, tool use id]}: runs a tool of the host's process, hands its result to the model,
{"wait": path}: waits until the file exists, 20 s at most, {"exit": code}. Whatever the SDK sends that the protocol does
not know ends it with exit code 9.
"""

import itertools
import json
import os
import sys
import time


def say(line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def hear():
    line = sys.stdin.readline()
    return json.loads(line) if line else None


numbers = itertools.count(1)


def serve(message):
    """Answers control requests; True for the prompt that is being waited for."""
    if message["type"] == "control_request":
        if message["request"]["subtype"] not in ("initialize", "interrupt"):
            sys.exit(9)
        answer = {"subtype": "success", "request_id": message["request_id"], "response": {"commands": []}}
        say({"type": "control_response", "response": answer})
        return False
    if message["type"] != "user" or message["message"]["role"] != "user":
        sys.exit(9)
    return True


def ask(server, method, params, *, notify=False):
    """One JSON-RPC message to a server in the host's process; its result."""
    number = next(numbers)
    rpc = {"jsonrpc": "2.0", "method": method, "params": params}
    if not notify:
        rpc["id"] = number
    request = {"subtype": "mcp_message", "server_name": server, "message": rpc}
    say({"type": "control_request", "request_id": f"fake-{number}", "request": request})
    while True:
        message = hear()
        if message["type"] == "control_response":
            assert message["response"]["request_id"] == f"fake-{number}"
            return message["response"]["response"]["mcp_response"].get("result")
        serve(message)


started = set()


def run_tool(server, tool, arguments, tool_use_id):
    if server not in started:
        started.add(server)
        about = {"name": "claude-code", "version": "2.1.0"}
        ask(server, "initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": about})
        ask(server, "notifications/initialized", {}, notify=True)
    result = ask(server, "tools/call", {"name": tool, "arguments": arguments})
    block = {"type": "tool_result", "tool_use_id": tool_use_id, "content": result["content"]}
    if result.get("isError"):
        block["is_error"] = True
    content = {"role": "user", "content": [block]}
    say({"type": "user", "message": content, "parent_tool_use_id": None, "session_id": "s-1"})


def main():
    if "-v" in sys.argv or "--version" in sys.argv:
        print("2.1.200 (Claude Code)")
        return
    if sys.argv[1:4] != ["--output-format", "stream-json", "--verbose"]:
        sys.exit(9)
    for lines in json.loads(os.environ["FAKE_CLAUDE"]):
        while True:
            message = hear()
            if message is None:
                return
            if serve(message):
                break
        say({"type": "system", "subtype": "init", "session_id": "s-1", "claude_code_version": "2.1.200", "tools": []})
        for line in lines:
            if "mcp" in line:
                run_tool(*line["mcp"])
            elif "wait" in line:
                deadline = time.monotonic() + 20
                while not os.path.exists(line["wait"]):
                    if time.monotonic() > deadline:
                        sys.exit(8)  # nobody came to end it
                    time.sleep(0.02)
            elif "exit" in line:
                sys.exit(line["exit"])
            else:
                say({"session_id": "s-1", "uuid": f"u-{next(numbers)}", **line})
    while (message := hear()) is not None:
        serve(message)


main()
