"""What the clients ask: tried with the small model, which continues, lists and describes better than it reasons."""

from __future__ import annotations

PROMPTS = (
    "Continue this story: The old lighthouse keeper opened the door and saw a small boat in the storm.",
    "Continue this story: The robot woke up in an empty library and began to read.",
    "List five things to pack for a walk in the mountains.",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about rain on a tin roof.",
    "Give three tips for sleeping well.",
    "What is the capital of France, and what is it known for?",
    "Describe a market in an old town.",
)

LAST_PROMPT = "Explain what a library is to a child."
"""Asked when the eight are done, and under way when the supervisor is told to stop."""

MAX_TOKENS = 60
TEMPERATURE = 0.2
"""Low: the small model loses its thread where chance has more say."""


def prompt(number: int) -> str:
    """The prompt of client 1, 2, …; one past the eight is `LAST_PROMPT`."""
    return (*PROMPTS, LAST_PROMPT)[number - 1]
