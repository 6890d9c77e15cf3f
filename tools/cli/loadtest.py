"""`callpool loadtest quota`: what one account gives to many programs, with callpool and without it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from callpool.manager.exits import Exit
from callpool.tools.cli import terminal
from callpool.tools.cli.options import AsJson
from callpool.tools.loadtest.scenario import DialectName, Scenario, largest_charge

if TYPE_CHECKING:
    from callpool.tools.loadtest.runs import Look

LONGEST_CALL = 600.0
"""Seconds that a call of a load test may take in the mean."""
LARGEST_LIMIT = 1_000_000_000
_DEFAULT = Scenario()

Clients = Annotated[int, typer.Option("--clients", min=1, max=200, metavar="N", help="Client processes.")]
Requests = Annotated[int, typer.Option("--requests", min=1, max=100_000, metavar="N", help="Requests of all of them.")]
Concurrency = Annotated[
    int, typer.Option("--concurrency", min=1, max=10_000, metavar="N", help="Calls at once that the account allows.")
]
TrueConcurrency = Annotated[
    int | None,
    typer.Option(
        "--true-concurrency",
        min=1,
        max=10_000,
        metavar="N",
        help="What the provider enforces, where that is not what the clients were told; else --concurrency.",
    ),
]
Rpm = Annotated[int, typer.Option("--rpm", min=1, max=LARGEST_LIMIT, metavar="N", help="Requests a minute.")]
Tpm = Annotated[int, typer.Option("--tpm", min=1, max=LARGEST_LIMIT, metavar="N", help="Tokens a minute.")]
MaxTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens", min=1, max=1_000_000, metavar="N", help="Token limit of each request; --tpm is charged with it."
    ),
]
Seconds = Annotated[
    float, typer.Option("--seconds", metavar="S", help="Mean duration of a call; half of it to one and a half.")
]
Dialect = Annotated[DialectName, typer.Option("--dialect", help="Whose words the provider uses.")]
Workers = Annotated[
    int, typer.Option("--workers", min=1, max=64, metavar="N", help="Worker processes of the supervisor.")
]
Skew = Annotated[bool, typer.Option("--skew", help="The first client has four fifths of the requests.")]
Direct = Annotated[
    bool, typer.Option("--direct/--no-direct", help="Also let the same clients call the provider without callpool.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="The same seed makes the same requests.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with charts.")]


def quota(
    *,
    clients: Clients = _DEFAULT.clients,
    requests: Requests = _DEFAULT.requests,
    concurrency: Concurrency = _DEFAULT.concurrency,
    true_concurrency: TrueConcurrency = None,
    rpm: Rpm = _DEFAULT.rpm,
    tpm: Tpm = _DEFAULT.tpm,
    max_tokens: MaxTokens = _DEFAULT.max_tokens,
    seconds: Seconds = _DEFAULT.seconds,
    dialect: Dialect = _DEFAULT.dialect,
    workers: Workers = _DEFAULT.workers,
    skew: Skew = False,
    direct: Direct = True,
    seed: Seed = _DEFAULT.seed,
    html: Html = None,
    as_json: AsJson = False,
) -> int:
    """Put many client processes on one account: how much of it is used, and how many calls are refused.

    The provider is a fake on this machine that refuses what is over its limits with 429; its log is the judge. No key is
    needed. After callpool come the same requests without it, in two ways that people write today: every client takes the whole
    concurrency for itself, or its part. With the defaults each of the three runs takes a minute at most.
    """
    if clients > requests:
        raise _wrong("--clients", f"{clients} clients need at least {clients} requests, --requests is {requests}")
    if not 0.01 <= seconds <= LONGEST_CALL:  # also what is no number
        raise _wrong("--seconds", f"must be from 0.01 to {LONGEST_CALL:g}, got {seconds:g}")
    if (charged := largest_charge(max_tokens)) > tpm:
        raise _wrong("--tpm", f"{tpm} is less than the {charged} tokens that one request can be charged (--max-tokens)")
    if html is not None:
        _check_writable(html)
    scenario = Scenario(
        clients=clients,
        requests=requests,
        concurrency=concurrency,
        true_concurrency=concurrency if true_concurrency is None else true_concurrency,
        rpm=rpm,
        tpm=tpm,
        seconds=seconds,
        max_tokens=max_tokens,
        dialect=dialect,
        workers=workers,
        skew=skew,
        seed=seed,
    )
    from callpool.tools.loadtest import report, runs  # noqa: PLC0415 - no other command needs them

    with _progress(scenario) as look:
        verdicts = runs.run_all(scenario, direct=direct, look=look)
    if as_json:
        terminal.write_json(report.as_json(scenario, verdicts))
    else:
        from callpool.tools.loadtest import tables  # noqa: PLC0415 - JSON needs no tables

        tables.show(scenario, verdicts)
    if html is not None:
        from callpool.tools.loadtest.page import page  # noqa: PLC0415 - few ask for it

        html.write_text(page(scenario, verdicts), encoding="utf-8")
        if not as_json:
            terminal.say(f"callpool: the charts are in {terminal.one_line(str(html))}")
    return Exit.OK


def _wrong(option: str, message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint=f"'{option}'")


def _check_writable(path: Path) -> None:
    """Refuse a page that could not be written, before minutes have passed. Raises typer.BadParameter."""
    if path.is_dir():
        raise _wrong("--html", f"{terminal.one_line(str(path))} is a directory")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise _wrong("--html", f"{terminal.one_line(str(path))} cannot be written")


@contextlib.contextmanager
def _progress(scenario: Scenario) -> Iterator[Look]:
    """A line on the terminal that tells how far the runs are; elsewhere nothing."""
    if not terminal.has_movement(sys.stderr):
        yield lambda _name, _over: None
        return
    from callpool.tools.cli import tables  # noqa: PLC0415 - only a terminal needs it
    from callpool.tools.loadtest.runs import MEANINGS  # noqa: PLC0415 - as above

    with tables.live_line() as update:
        update("starting …")
        yield lambda name, over: update(f"{over:,} of {scenario.requests:,} requests over · {MEANINGS[name]}")
