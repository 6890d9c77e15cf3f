"""`callpool chat`: a conversation, typed or piped in."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from callpool import errors
from callpool.manager.exits import Exit
from callpool.tools.cli import failures, terminal
from callpool.tools.cli.options import (
    Address,
    Affinity,
    ClientName,
    FirstToken,
    Idle,
    Model,
    Order,
    Parameters,
    Provider,
    QueueTimeout,
    System,
    Thinking,
    Timeout,
    WebSearch,
    as_messages,
    connect,
    parse_options,
    parse_parameters,
)
from callpool.tools.cli.submit import cancel, in_doubt, print_text

if TYPE_CHECKING:
    from typing import Any

    from callpool.manager.client import Client

_COMMAND: Final = re.compile(r"/[a-z]+")
_END_OF_CHAT: Final = (
    errors.UnknownProvider,
    errors.UnknownModel,
    errors.CredentialMissing,
    errors.ShuttingDown,
    errors.NotRunning,
    errors.ConnectionLost,
)
"""After these no later question would fare better."""


def chat(
    *,
    provider: Provider,
    model: Model,
    system: System = None,
    timeout: Timeout = None,
    first_token_timeout: FirstToken = None,
    idle_timeout: Idle = None,
    thinking: Thinking = None,
    websearch: WebSearch = False,
    priority: Order = "normal",
    queue_timeout: QueueTimeout = None,
    affinity: Affinity = None,
    param: Parameters = None,
    address: Address = None,
    client_name: ClientName = None,
) -> int:
    """Talk with a model; it is told the whole conversation each time.

    On a terminal: /reset begins anew, Ctrl-C stops an answer, /quit or Ctrl-D ends. A question without a whole answer is
    forgotten. From a pipe: one question a line, answers only on standard output; the first error ends it.
    """
    parameters = parse_parameters(param)
    with connect(address, client_name) as client:
        entry = client.catalogue.providers.get(provider)
        conversation = Conversation(
            client,
            system,
            keeps_reasoning=entry is not None and entry.rules.of(model).keeps_reasoning,
            provider=provider,
            model=model,
            timeout=timeout,
            first_token_timeout=first_token_timeout,
            idle_timeout=idle_timeout,
            priority=priority,
            queue_timeout=queue_timeout,
            affinity=affinity,
            options=parse_options(thinking_mode=thinking, use_websearch=websearch, enable_continuation=True),
            **parameters,
        )
        if terminal.is_terminal(sys.stdin) and terminal.is_terminal(sys.stdout):
            return _talk(conversation, f"{provider}/{model}")
        return _read_lines(conversation)


class Conversation:
    """What has been asked and answered. Only whole exchanges are kept."""

    def __init__(self, client: Client, system: str | None, *, keeps_reasoning: bool = False, **request: Any) -> None:
        """`keeps_reasoning`: the model wants its reasoning back with its answers."""
        self._client = client
        self._request = request
        self._system = system
        self._turns: list[dict[str, str]] = []
        self._keeps_reasoning = keeps_reasoning

    def reset(self) -> None:
        """Forget all but the system text."""
        self._turns.clear()

    def ask(self, text: str) -> bool:
        """Ask, and print the answer as it comes; False if Ctrl-C stopped it. Raises like `Handle.result`."""
        question = {"role": "user", "content": text}
        messages = as_messages(self._system, *self._turns, question)
        handle = self._client.submit(messages=messages, stream=True, **self._request)
        try:
            answer = print_text(handle)
        except KeyboardInterrupt:
            cancel(handle)
            return False
        except errors.ConnectionLost as error:
            raise in_doubt(error) from error
        said = {"role": "assistant", "content": answer["content"]}
        if answer.get("reasoning_content") and self._keeps_reasoning:
            said["reasoning_content"] = answer["reasoning_content"]
        self._turns += [question, said]
        return True


def _talk(conversation: Conversation, name: str) -> int:
    """The dialogue on a terminal."""
    with suppress(ImportError):  # some builds of Python have no readline: then lines are read without editing
        import readline  # noqa: F401, PLC0415 - its import gives `input` line editing and a history
    terminal.say(
        f"Talking with {terminal.one_line(name)}. /reset begins anew, /quit or Ctrl-D ends, Ctrl-C stops an answer."
    )
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            terminal.write("\n")
            return Exit.OK
        except KeyboardInterrupt:
            terminal.say("\n(/quit or Ctrl-D ends)")
            continue
        if text == "/quit":
            return Exit.OK
        try:
            _take(conversation, text)
        except errors.CallpoolError as error:
            if isinstance(error, _END_OF_CHAT) or isinstance(error.__cause__, _END_OF_CHAT):
                raise
            failures.tell(error, as_json=False)


def _take(conversation: Conversation, text: str) -> None:
    """One line of the dialogue."""
    if text == "/reset":
        conversation.reset()
        terminal.say("(forgotten)")
    elif _COMMAND.fullmatch(text):
        terminal.say(f"(there is no {text}: /reset and /quit are all)")
    elif text and not conversation.ask(text):
        terminal.say("(stopped)")


def _read_lines(conversation: Conversation) -> int:
    """The questions of a pipe or a file."""
    for line in sys.stdin or ():
        text = line.strip()
        if text == "/quit":
            break
        if text == "/reset":
            conversation.reset()
        elif text and not conversation.ask(text):
            return Exit.INTERRUPTED
    return Exit.OK
