"""A fake LLM provider for tests and load tests: HTTP on loopback, a provider's limits and words, faults, a log.

    async with FakeProvider(dialect="kimi", concurrency=5) as fake:     # in your event loop
        ... call fake.base_url + "/chat/completions" ...
        assert fake.peak_active <= 5

    with FakeProviderProcess(delay=0.05) as fake:                       # in a process of its own
        ...
        fake.wait_for(lambda calls: any(call.outcome == "client_gone" for call in calls))

What a request can ask for:

- model `fault-NAME`: this fault (`FAULTS`, or `--list-faults`); `fault-NAME-3`: at the first three calls of that model
  name;
- a `fake` object in its body: what it names overrides the fake's own options (`fake_requests.Options`).

It knows nothing of the rest of callpool, so that it can be a witness against it. All options, dialects, rules and
faults: `docs/fake-provider.md`.

How it is made: `fake_server` listens; `fake_connection` reads requests (`fake_http`) and notices who leaves;
`fake_service` records each call (`fake_history`, `fake_records`), asks `fake_rules` and `fake_limits`, and has it
answered by `fake_exchange`: with what `fake_replies` has to say (or `fake_tasks`, `fake_embeddings`), in the words of
`fake_dialects` and the forms of `fake_answers`, or spoiled by `fake_faults`.
"""

from __future__ import annotations

from callpool.tools.testing.fake_command import main
from callpool.tools.testing.fake_faults import FAULTS, Fault
from callpool.tools.testing.fake_process import FakeProviderProcess
from callpool.tools.testing.fake_records import CallRecord, Totals, messages_digest, peak_active, read_log
from callpool.tools.testing.fake_server import FakeProvider

__all__ = [
    "FAULTS",
    "CallRecord",
    "FakeProvider",
    "FakeProviderProcess",
    "Fault",
    "Totals",
    "messages_digest",
    "peak_active",
    "read_log",
]

if __name__ == "__main__":
    raise SystemExit(main())
