"""The local model: one native, OpenAI-compatible server in a process of its own.

    supervisor                                      this process
    ──────────                                      ────────────────────────────────────────────
    spawns `serve`, holds one end of a pipe ◄────── one line of JSON: `Ready` or `Failed`
    hands address and key to its workers            xllamacpp.Server: 127.0.0.1, free port, N slots
    closes its end, or dies               ────────► end of file, or the kernel's SIGKILL: gone at once

Reads: its options, the model's file. Writes: the line, the log. Never: the journal, or any provider's key.
"""

from __future__ import annotations

import importlib
import os
import secrets
import time
from typing import Any, NoReturn, Protocol

import msgspec
import multiprocess

from callpool.workers.lifeline import die_with
from callpool.workers.model_options import INSTALL_HINT, ModelOptions, find_model, require_engine
from callpool.workers.model_process import Output, leave_no_core, obey_the_pipe_alone

__all__ = [
    "INSTALL_HINT",
    "VERBOSE_VARIABLE",
    "Failed",
    "ModelOptions",
    "Ready",
    "Report",
    "decode_report",
    "find_model",
    "require_engine",
    "serve",
]

VERBOSE_VARIABLE = "CALLPOOL_MODEL_VERBOSE"
"""Environment variable: when set and not empty, llama.cpp prints everything to this process's own output."""

LOOPBACK = "127.0.0.1"

HTTP_THREADS = 64
"""The engine gives each connection a thread, also one that says nothing, until its 5 s of keep-alive are over. With the
engine's default (12 at 8 slots) 40 silent connections made the next request wait 5.1 s; with 64 it waited 1 ms."""

READ_TIMEOUT = 30
"""Seconds for a request's bytes to arrive. The engine's default, an hour, lets one half-sent request hold a thread."""

WRITE_TIMEOUT = 60
"""Seconds for one write to be taken. A worker that cannot pass text on stops reading; for longer, it is dead."""

LAST_LINES = 12
"""Lines of the engine's log that a failure brings along."""

EXIT_FAILED = 1


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The server answers: `POST {base_url}/chat/completions` with `Authorization: Bearer {api_key}`."""

    base_url: str
    """`http://127.0.0.1:PORT/v1`"""
    api_key: str
    """Made at each start. Other users of the machine can reach the port, so it goes to workers and to nothing else."""
    model: str
    slots: int
    context: int
    """Tokens of one conversation."""
    load_seconds: float

    def __repr__(self) -> str:
        return f"Ready(base_url={self.base_url!r}, api_key=…, model={self.model!r}, slots={self.slots})"


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The server did not start, and its process has ended."""

    reason: str
    last_lines: list[str] = []
    """The end of what the engine logged, newest last."""


Report = Ready | Failed

_decoder = msgspec.json.Decoder(Report)


class HasFileno(Protocol):
    """A duplex pipe end that spawn can hand over: a `multiprocess` Connection or a Unix stream socket."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


def decode_report(line: bytes) -> Report:
    """What `serve` wrote. Raises `msgspec.ValidationError` or `msgspec.DecodeError` for anything else."""
    report: Report = _decoder.decode(line)
    return report


def serve(options: ModelOptions, pipe: HasFileno) -> NoReturn:
    """Main function of the server's process: report once, answer until the pipe ends. It never returns.

    Exit status: 0 after the end of the pipe, `EXIT_FAILED` after `Failed` or with nobody to tell. A crash inside
    the engine gives a signal and no report: the end of file without a line means just that.
    """
    parent = multiprocess.parent_process()
    die_with(parent.pid if parent is not None else os.getppid())
    obey_the_pipe_alone()
    leave_no_core()
    descriptor = pipe.fileno()
    os.set_blocking(descriptor, True)
    verbose = bool(os.environ.get(VERBOSE_VARIABLE))
    output = None if verbose else Output(options.log)
    try:
        _engine, ready = _load(options, verbose=verbose)
    except Exception as error:  # noqa: BLE001 (whatever the engine raises, the supervisor must hear it)
        lines = output.last_lines(LAST_LINES) if output else []
        _tell(descriptor, Failed(reason=f"{type(error).__name__}: {error}", last_lines=lines))
        os._exit(EXIT_FAILED)
    if output:
        output.loaded()
    _tell(descriptor, ready)
    _wait_for_end(descriptor)
    # Straight out, with the engine still referenced: its destructor waits for answers under way, and can hang.
    os._exit(0)


def _load(options: ModelOptions, *, verbose: bool) -> tuple[Any, Ready]:
    """Load the model and listen. Takes about half a second, during which the engine holds the interpreter's lock."""
    begun = time.monotonic()
    engine: Any = importlib.import_module("xllamacpp")
    api_key = secrets.token_urlsafe(32)
    server = engine.Server(_parameters(engine, options, api_key, verbose=verbose))
    ready = Ready(
        base_url=f"{server.listening_address}/v1",
        api_key=api_key,
        model=options.name,
        slots=options.slots,
        context=options.context,
        load_seconds=time.monotonic() - begun,
    )
    return server, ready


def _parameters(engine: Any, options: ModelOptions, api_key: str, *, verbose: bool) -> Any:
    """The engine's own parameter object."""
    p = engine.CommonParams()
    p.model.path = options.path
    p.model_alias = {options.name}
    p.n_parallel = options.slots
    p.n_ctx = options.slots * options.context  # the engine divides it among the slots
    p.cont_batching = True  # a new answer joins those under way instead of waiting for them
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = options.threads
    p.n_gpu_layers = 0
    p.fit_params = False  # a dry run that finds out what fits a GPU; twice the load time
    p.cache_type_k = p.cache_type_v = engine.ggml_type.GGML_TYPE_Q8_0  # 84 MB less than F16 at 8 x 1024, same speed
    p.cache_ram_mib = 0  # else old prompts pile up in memory, by default to 8 GiB
    p.cache_idle_slots = False
    p.offline = True
    p.verbosity = 3 if verbose else 1  # 1: errors only
    _harden(p, api_key)
    return p


def _harden(p: Any, api_key: str) -> None:
    """Leave strangers on this machine, and pages in its browsers, nothing but `{"status":"ok"}` at /health."""
    p.hostnames = [LOOPBACK]
    p.port = 0
    p.api_keys = [api_key]
    p.ui = p.ui_mcp_proxy = False
    p.endpoint_slots = p.endpoint_props = p.endpoint_metrics = False
    p.cors_origins = p.cors_headers = ""
    p.cors_methods = "POST"
    p.cors_credentials = False
    p.n_threads_http = HTTP_THREADS
    p.timeout_read = READ_TIMEOUT
    p.timeout_write = WRITE_TIMEOUT


def _tell(descriptor: int, report: Report) -> None:
    """Write the one line; without a supervisor to read it there is nothing left to do here."""
    line = msgspec.json.encode(report) + b"\n"
    try:
        while line:
            line = line[os.write(descriptor, line) :]
    except OSError:
        os._exit(EXIT_FAILED)


def _wait_for_end(descriptor: int) -> None:
    """Return when the other end is closed. Nothing is ever said on it; bytes are dropped."""
    try:
        while os.read(descriptor, 4096):
            pass
    except OSError:  # reset: closed with our line unread
        return
