"""A travel desk on Google ADK: answers one question with the help of a tool.

It knows nothing of metering. GOOGLE_GEMINI_BASE_URL names a server that speaks Gemini's API, if it is not Google's.

    python google_adk_agent.py "How is the weather in Oslo?"
"""

import asyncio
import os
import sys

from google.adk.agents import LlmAgent
from google.adk.runners import InMemoryRunner
from google.genai import types


def weather(city: str) -> str:
    """How the weather is in a city."""
    return f"It rains in {city}."


async def main(question: str) -> None:
    agent = LlmAgent(
        name="travel_desk",
        model=os.environ.get("GEMINI_MODEL", "gemini-2.5-flash"),
        instruction="Help travellers. Look the weather up.",
        tools=[weather],
    )
    runner = InMemoryRunner(agent, app_name="travel")
    session = await runner.session_service.create_session(app_name="travel", user_id="guest", session_id="trip-1")
    message = types.Content(role="user", parts=[types.Part(text=question)])
    async for event in runner.run_async(user_id="guest", session_id=session.id, new_message=message):
        if event.is_final_response() and event.content:
            print(event.content.parts[0].text)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
