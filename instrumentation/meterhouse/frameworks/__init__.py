"""The frameworks that agents are built with: their tools, agents, conversations and steps."""
