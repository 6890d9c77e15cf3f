"""The settings of a supervisor, as typed data: what `callpool.manager.config` makes of a TOML file or a dict.

Nothing here reads files or the environment, and nothing here holds a key: a provider's settings say where its key comes from.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from callpool.manager.core.catalogue import Timeouts

Kind = Literal["openai", "kimi", "glm", "local", "scripted"]

KEEP_IDLE = 15.0
"""Seconds that an unused connection is kept. Balancers close theirs after 60 s and more; a request sent into one that
is just being closed fails, so we let go well before."""
LOCAL_MODEL = "smollm2"
"""The model that a `local` provider serves when its configuration lists none."""
LOCAL_SLOTS = 8
"""Answers at once of a local model, where the configuration does not say."""
MAX_LOCAL_SLOTS = 64
"""Answers at once of a local model: more would only divide the same cores further."""

SCRIPT_FAULTS = frozenset({
    "block", "broken_answer", "content", "crash", "credential", "exit", "hang", "memory", "model_gone", "overloaded", "quota", "raise",
    "rate_limited", "recursion", "rejected", "server_error", "system_exit", "unreachable",
})  # fmt: skip
"""What `error` of a scripted model may be; `callpool.workers.providers.script_faults` has what each does."""


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One model of a provider. The second group is its limits and prices, the third for providers of kind `scripted` alone."""

    timeout: float | None = None
    """Seconds from a request's first call to its end; None takes the provider's, then the supervisor's `default_timeout`."""
    first_token_timeout: float | None = None
    """Of a stream: seconds to the first chunk that brings anything; None takes the provider's."""
    idle_timeout: float | None = None
    """Of a stream: seconds from one chunk that brings anything to the next; None takes the provider's."""
    fallbacks: list[str] | None = None
    """Targets, as `provider/model`, for requests that this model cannot serve; None takes the provider's."""
    context: int | None = None
    """Tokens of prompt and answer together; None takes what callpool knows of the model, as do the next two."""
    max_output: int | None = None
    """Tokens of one answer. More are refused."""
    max_tokens: int | None = None
    """Tokens of an answer that are asked for where a request does not say."""

    concurrency: int | None = None
    """Calls at once of this model, besides the account's; None limits nothing, as in the next three."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    input_price: float | None = None
    """Money for a million tokens of prompt. Both prices are given, or none."""
    output_price: float | None = None
    """Money for a million tokens of answer."""
    cached_input_price: float | None = None
    """Money for a million tokens of prompt that the provider had cached; None takes `input_price`."""
    queue_timeout: float | None = None
    """Seconds that a request waits for its first call at most; None takes the provider's."""

    reply: str | None = None
    """Text of the answer; None echoes the last message."""
    replies: list[str] = []
    """Answers in turn, the last one repeated; wins over `reply`."""
    delay: float = 0.0
    """Seconds before the answer, or before its first chunk."""
    chunks: int = 0
    """Number of pieces of a streamed answer; 0 makes one piece a word."""
    chunk_delay: float = 0.0
    """Seconds before each further chunk."""
    error_times: int | None = None
    """How many calls get `error`, in each worker, before the answers begin; None gives it to all."""
    error: str | None = None
    """Name of a fault to produce instead of an answer: see `SCRIPT_FAULTS`."""


_UNLISTED = ModelSettings()


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One provider account: where it is, where its key comes from, and what it allows."""

    kind: Kind
    platform: str | None = None
    """Name of one of the kind's own addresses; None takes the kind's default, where it has one."""
    base_url: str | None = None
    """Root of the API where it is no platform's, for example `https://gateway.example/v1`."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; without it and `api_key_file`, the kind's customary ones."""
    api_key_file: str | None = None
    """Path of a file with mode 0600 that holds the key."""
    concurrency: int | None = None
    """Calls at once on this account, or on each of its models if `concurrency_of` says so; None allows `max_concurrent_sessions`."""
    requests_per_minute: int | None = None
    """None limits nothing, as in the next three. Minutes and days are sliding ones: any 60 s, any 24 hours."""
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    money_per_day: float | None = None
    """In the currency of the prices."""
    organization: str | None = None
    """Name of one of `organizations`: accounts with the same one share its limits."""
    charge: Literal["advance", "actual"] | None = None
    """Whether a minute's tokens count prompt and limit of the answer when a call begins, or what was used; None takes the kind's."""
    concurrency_of: Literal["account", "model"] | None = None
    """Whose calls at once the provider limits; None takes the kind's."""
    cancel_lag: float | None = None
    """Seconds for which the slot of a call that we ended counts on; None takes the kind's."""
    queue_timeout: float | None = None
    """Seconds that a request waits for its first call at most; None takes the supervisor's."""
    connections: int | None = None
    """Connections at once in one worker; None allows as many as calls. A call beyond them waits for one."""
    keep_alive: float = KEEP_IDLE
    """Seconds that an unused connection is kept."""
    warm_connections: int = 0
    """Connections that each worker opens ahead of any call, and keeps open."""
    timeout: float | None = None
    """Seconds from a request's first call to its end; None takes the supervisor's `default_timeout`."""
    first_token_timeout: float | None = None
    """Of a stream: seconds to the first chunk that brings anything; None leaves it to `timeout`."""
    idle_timeout: float | None = None
    """Of a stream: seconds from one chunk that brings anything to the next; None leaves it to `timeout`."""
    max_attempts: int | None = None
    """Calls of one request on this account at most; None takes the supervisor's."""
    fallbacks: list[str] = []
    """Targets, as `provider/model`, for requests that this account cannot serve."""
    any_model: bool = False
    """Allow models that `models` does not list. Without any listed model every name is allowed."""
    unsupported_parameters: Literal["refuse", "drop"] = "refuse"
    """What becomes of a parameter that the provider does not let a request choose."""
    models: dict[str, ModelSettings] = {}


class SupervisorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The pool itself. Defaults of the first four limits are the specification's."""

    workers: int = 2
    max_concurrent_sessions: int = 200
    max_metadata_size: int = 10_240
    """Bytes of a request's metadata as JSON."""
    default_timeout: float = 30.0
    """Seconds from a request's first call to its end, where neither model, provider nor request says otherwise."""
    max_queued_requests: int = 10_000
    max_queued_bytes: int = 268_435_456
    """Bytes of payload that may wait in the queue: 256 MiB."""
    shutdown_timeout: float = 30.0
    """Seconds that a drain waits for active requests."""
    heartbeat_interval: float = 1.0
    """Seconds between a worker's heartbeats; three missed ones end the worker."""
    max_calls_per_worker: int = 0
    """Calls after which a worker is replaced by a new one when it has time; 0 is never, as workers keep nothing between calls."""
    max_worker_memory: int = 0
    """Bytes of resident memory at which the same is done; 0 is never."""
    max_connections: int = 1_024
    """Client connections at once."""
    history_requests: int = 2_000
    """Finished requests that `show` and the lifecycle log can still find."""
    history_bytes: int = 33_554_432
    """Bytes that they may take: 32 MiB."""
    history_seconds: float = 3_600.0
    """Seconds after which they are forgotten."""
    cleanup_interval: float = 5.0
    """Seconds past its timeout after which a session that a client holds is ended without being asked for."""
    function_workers: int = 4
    """Processes that run functions of clients at once (`where="worker"`); 0 refuses functions."""
    max_attempts: int = 3
    """Calls of one request on one account and model at most: only what is transient and cannot have been billed is called again.
    A call that a limit refused does not count."""
    retry_wait: float = 0.5
    """Seconds: the longest pause before the second call; it doubles with each further one."""
    retry_longest_wait: float = 20.0
    """Seconds: the longest pause, where the provider names none."""
    retry_budget: float = 0.2
    """Retries that each completed call brings back to its account; it begins with ten, and has never more."""
    circuit_failures: int = 5
    """Requests in a row that fail by a provider's trouble before its model is left alone for a while; 0 never does that."""
    circuit_pause: float = 5.0
    """Seconds until one request tries whether it works again; doubles with each that finds it does not."""
    circuit_longest_pause: float = 60.0
    """Seconds at most."""
    circuit_patience: float = 30.0
    """Seconds that a request waits for that at most; while a probe is out it waits for the probe's end."""
    lifecycle_log: bool = False
    """Whether every lifecycle event is also written to `logs/lifecycle.jsonl` in the state directory."""
    max_requests_per_minute: int | None = None
    """Calls that begin in any 60 s, over all accounts; None limits nothing."""
    queue_timeout: float | None = None
    """Seconds that a request waits for its first call, where neither model, provider nor request says otherwise; None: no limit."""
    ageing: float = 30.0
    """Seconds after which a request that waits gets turns ahead of higher classes."""


class OrganizationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the accounts of one organisation may use together; None limits nothing."""

    concurrency: int | None = None
    """Calls at once."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    money_per_day: float | None = None
    """In the currency of the prices."""


class ClientSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one client may use, whichever accounts it uses; None limits nothing."""

    weight: float = 1.0
    """Its share, beside the others' of its class: twice the weight gets twice the turns."""
    max_requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    money_per_day: float | None = None
    """In the currency of the prices."""


class JournalSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What jobs survive, and how large their file may become. An embedded supervisor keeps none."""

    durability: Literal["full", "process", "none"] = "full"
    """`full`: a loss of power as well; `process`: the end of any process; `none`: no jobs are taken."""
    max_bytes: int = 4_294_967_296
    """Bytes of the file: 4 GiB. A full journal takes no jobs until results are past their time."""


class RetentionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """For how long what has ended is kept on the disk."""

    result_days: float = 7.0
    """Days after its end in which a job, and its result, can be asked for."""
    history_days: float = 30.0
    """Days after its end in which a session can be asked for; without a journal none is kept over a restart."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The whole configuration."""

    supervisor: SupervisorSettings = SupervisorSettings()
    providers: dict[str, ProviderSettings] = {}
    organizations: dict[str, OrganizationSettings] = {}
    clients: dict[str, ClientSettings] = {}
    """By name; that of `limits.OTHERS` is for every client without an entry of its own."""
    journal: JournalSettings = JournalSettings()
    retention: RetentionSettings = RetentionSettings()

    def timeouts_for(self, provider: str, model: str = "") -> Timeouts:
        """Of one call: each is the model's, else the provider's, and the total else the supervisor's default."""
        account = self.providers[provider]
        listed = account.models.get(model, _UNLISTED)
        total = account.timeout if listed.timeout is None else listed.timeout
        first_token, idle = listed.first_token_timeout, listed.idle_timeout
        return Timeouts(
            self.supervisor.default_timeout if total is None else total,
            account.first_token_timeout if first_token is None else first_token,
            account.idle_timeout if idle is None else idle,
        )

    def queue_timeout_for(self, provider: str, model: str = "") -> float | None:
        """Seconds that a request waits for its first call: the model's, else the provider's, the supervisor's; None: no limit."""
        account = self.providers[provider]
        stated = (account.models.get(model, _UNLISTED).queue_timeout, account.queue_timeout)
        return next((seconds for seconds in stated if seconds is not None), self.supervisor.queue_timeout)
