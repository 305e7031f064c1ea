"""Runs the bookkeeping agent for customers: `meterhouse run -- python host.py`. The only metering code there is."""

import asyncio

from agent import Agent, serve

import meterhouse


async def metered(agent: Agent, customer: str, question: str) -> str:
    with meterhouse.customer(customer):
        return await agent.answer(question, customer)


asyncio.run(serve(metered))
