"""`callpool submit`: one request, from the prompt to the answer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from callpool import errors
from callpool.manager.exits import Exit
from callpool.tools.cli import failures, terminal
from callpool.tools.cli.options import (
    Address,
    Affinity,
    AsJson,
    CacheId,
    ClientName,
    Continue,
    Detach,
    Durable,
    Fallbacks,
    FirstToken,
    Idle,
    InDoubt,
    MaxAttempts,
    Metadata,
    Model,
    Order,
    Parameters,
    Provider,
    QueueTimeout,
    RequestId,
    System,
    Task,
    Thinking,
    Timeout,
    WebSearch,
    as_messages,
    connect,
    parse_metadata,
    parse_options,
    parse_parameters,
    read_prompt,
)
from callpool.tools.cli.outliving import outliving

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.handle import Handle

CANCEL_WAIT: Final = 10.0
"""Seconds for the word that a cancelled request has ended; the supervisor gives up on a silent worker sooner."""

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The question; - reads it from standard input.")]
Stream = Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")]


def submit(
    prompt: Prompt,
    *,
    provider: Provider,
    model: Model,
    stream: Stream = False,
    durable: Durable = False,
    detach: Detach = False,
    timeout: Timeout = None,
    first_token_timeout: FirstToken = None,
    idle_timeout: Idle = None,
    max_attempts: MaxAttempts = None,
    fallback: Fallbacks = None,
    retry_in_doubt: InDoubt = False,
    priority: Order = "normal",
    queue_timeout: QueueTimeout = None,
    affinity: Affinity = None,
    request_id: RequestId = None,
    metadata: Metadata = None,
    param: Parameters = None,
    system: System = None,
    thinking: Thinking = None,
    websearch: WebSearch = False,
    continue_: Continue = False,
    task: Task = False,
    cache_id: CacheId = None,
    as_json: AsJson = False,
    address: Address = None,
    client_name: ClientName = None,
) -> int:
    """Submit one request and print its answer.

    The request's id comes first, on standard error, so that standard output is the answer alone; with --json it is a field.
    Ctrl-C cancels the request at the provider, but of a job it only ends this command. With --detach the id alone goes to
    standard output. Exit status: 0 answered, 1 error, 3 timed out, cancelled or interrupted.
    """
    messages = as_messages(system, {"role": "user", "content": read_prompt(prompt)})
    extra, kept = parse_parameters(param), parse_metadata(metadata)
    options = parse_options(
        thinking_mode=thinking,
        use_websearch=websearch,
        enable_continuation=continue_,
        async_task=task,
        cache_id=cache_id,
    )
    with connect(address, client_name) as client:
        begin = partial(
            client.submit,
            provider=provider,
            model=model,
            messages=messages,
            stream=stream,
            timeout=timeout,
            first_token_timeout=first_token_timeout,
            idle_timeout=idle_timeout,
            max_attempts=max_attempts,
            fallbacks=fallback,
            retry_in_doubt=retry_in_doubt,
            metadata=kept,
            options=options,
            priority=priority,
            queue_timeout=queue_timeout,
            affinity=affinity,
            **extra,
        )
        if durable or detach:
            own = client.generate_request_id() if request_id is None else request_id
            return _submit_job(begin, own, detach=detach, as_json=as_json, stream=stream)
        handle = begin(request_id=request_id)
        try:
            _follow(handle, as_json=as_json, stream=stream)
        except KeyboardInterrupt:
            return _cancel(handle, as_json=as_json)
        except errors.ConnectionLost as error:
            raise in_doubt(error) from None
    return Exit.OK


def _follow(handle: Handle, *, as_json: bool, stream: bool) -> None:
    if as_json and stream:
        terminal.write_json({"request_id": handle.request_id})
    elif not as_json:
        terminal.say(f"request {handle.request_id}")
    if as_json:
        _print_json(handle, stream=stream)
    else:
        print_text(handle)


def _submit_job(begin: Callable[..., Handle], request_id: str, *, detach: bool, as_json: bool, stream: bool) -> Exit:
    """Have a job taken; print its id, or wait for its answer."""
    with outliving(request_id, as_json=as_json) as wait:
        handle = begin(request_id=request_id, durable=True)
        wait.taken = True
        if not detach:
            _follow(handle, as_json=as_json, stream=stream)
        elif as_json:
            terminal.write_json({"request_id": request_id})
        else:
            terminal.write(f"{request_id}\n")
    return Exit.OK


def print_text(handle: Handle) -> dict[str, Any]:
    """Print an answer's text as it comes, and return the answer. Raises like `Handle.result`."""
    last, seen = "", 0
    try:
        for piece in handle:
            if piece.restart:
                terminal.write("\n" if last and not last.endswith("\n") else "")
                terminal.say("callpool: the call failed; another one answers from the start:")
                last = ""
            terminal.write(terminal.safe(piece))
            last, seen = piece or last, seen + len(piece)
    finally:
        if last and not last.endswith("\n"):
            terminal.write("\n")
    answer = handle.result()
    if not seen:  # a job of this id had ended before: what it streamed is over
        write_text(answer)
    elif handle.fingerprint is not None and seen < len(answer["content"]):
        terminal.say(f"callpool: it had begun before: `callpool result {handle.request_id}` has the whole answer")
    if not handle.is_from(answer):
        terminal.say(
            f"callpool: answered by {terminal.one_line(answer['provider'])}/{terminal.one_line(answer['model'])}"
        )
    tell_more(answer)
    return answer


def write_text(answer: dict[str, Any]) -> None:
    """Write an answer's text as a whole, with a line end."""
    text = answer["content"]
    if text:
        terminal.write(terminal.safe(text) + ("" if text.endswith("\n") else "\n"))


def tell_more(answer: dict[str, Any]) -> None:
    """What a person must know of an answer that its text does not show: that it was cut, or has none."""
    if not answer["content"]:
        calls = len(answer.get("tool_calls") or ())
        terminal.say(f"callpool: the answer has no text{f', but {calls} tool calls: see --json' if calls else ''}")
    if answer["finish_reason"] in ("length", "model_context_window_exceeded"):
        why = answer["metadata"].get("continuation", {}).get("why")
        terminal.say(f"callpool: the answer was cut at its limit{f': {terminal.one_line(why)}' if why else ''}")


def in_doubt(error: errors.ConnectionLost) -> errors.RequestInterrupted:
    """The error of a request whose supervisor went away while it was under way."""
    return errors.RequestInterrupted(
        f"{error.message} before the request had ended",
        hint="it may have been billed: submit it again if that is all right",
    )


def cancel(handle: Handle) -> errors.CallpoolError | None:
    """End a request at its provider and wait for the word that it has ended: its error, or None if the answer was faster."""
    handle.cancel()
    error = handle.exception(timeout=CANCEL_WAIT)
    if error is not None and not isinstance(error, errors.CallpoolError):
        raise error
    return error


def _print_json(handle: Handle, *, stream: bool) -> None:
    if not stream:
        terminal.write_json({"request_id": handle.request_id, **handle.result()})
        return
    for piece in handle:
        terminal.write_json({"chunk": str(piece)} | ({"restart": True} if piece.restart else {}))
    terminal.write_json({"result": {"request_id": handle.request_id, **handle.result()}})


def _cancel(handle: Handle, *, as_json: bool) -> Exit:
    error = cancel(handle)
    if error is not None and as_json:
        failures.tell(error, as_json=True)
    elif error is not None:
        took = error.details.get("cancel_seconds")
        ended = "" if took is None else f" (the call was ended within {took * 1000:.0f} ms)"
        terminal.say(f"callpool: {handle.request_id}: {terminal.one_line(error.message)}{ended}")
    else:
        terminal.say(f"callpool: {handle.request_id} had ended before it could be cancelled")
    return Exit.INTERRUPTED
