"""Whether the current customer may make another call; see docs/contracts.md, section 5."""


def admit() -> None:
    """Returns when the call may go out; raises UsageLimitExceeded when the customer is paused."""


async def admit_async() -> None:
    """`admit` for code in an event loop."""
