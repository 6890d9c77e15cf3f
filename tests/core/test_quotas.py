"""What refusals, stops, budgets and quotas do to requests: stories on the bench."""

from __future__ import annotations

from typing import Any

import pytest

from callpool.manager.core.circuits import CircuitRules
from callpool.manager.core.events import (
    AccountResumed,
    Answer,
    CancelAsked,
    FunctionAsked,
    Reported,
    SessionAsked,
    Submitted,
    Tick,
    WorkerDown,
)
from callpool.manager.core.faults import Fault
from callpool.manager.core.limits import AccountRules, ClientRules, Counting, LedgerRules, Limits, Price, Usage
from callpool.manager.core.messages import Continues, Finished, Piece, Rejected, Started, Submit
from callpool.manager.core.requests import Now
from callpool.manager.core.retry import RetryRules, Target
from callpool.manager.core.teaching import UNKNOWN_WINDOW, outcome_of

from .attempts import BUSY, bench, ends, fail, fault, orders, record, wake
from .build import TIMEOUT, Bench, to_clients

FULL = fault("rate_limited", limit="concurrency", scope="account")
RATE = fault("rate_limited", limit="rpm", scope="account")
NO_MONEY = fault("quota_exhausted", retryable=False, scope="account")
DEAD_KEY = fault("credential_refused", retryable=False, scope="account", status=401)


def account(concurrency: int = 10, *, models: dict[str, Limits] | None = None, **more: Any) -> AccountRules:
    counting = {name: more.pop(name) for name in ("charge", "concurrency_of", "cancel_lag") if name in more}
    prices, organization = more.pop("prices", {}), more.pop("organization", None)
    return AccountRules(
        limits=Limits(concurrency=concurrency, **more),
        models=models or {},
        counting=Counting(**counting),
        prices=prices,
        organization=organization,
    )


def with_rules(rules: LedgerRules | None = None, *, pool: int = 100, **options: Any) -> Bench:
    """Accounts `a` and `b` of ten slots, where the rules do not say otherwise."""
    limits = {"a": 10, "b": 10}
    return bench(pool=pool, accounts=limits, rules=rules, **options)


def one(**more: Any) -> LedgerRules:
    return LedgerRules(accounts={"a": account(**more)})


def submit(b: Bench, *names: str, **more: Any) -> None:
    for name in names:
        b.submit(name, **more)


def active(b: Bench) -> list[str]:
    """Calls that are out."""
    return sorted(name for name, request in b.core.requests.items() if request.worker is not None)


def refuse(b: Bench, request_id: str, why: Fault, after: float = 0.1) -> Any:
    b.time += after
    return fail(b, why, request_id)


def end_of(b: Bench, request_id: str) -> Fault:
    found = next(each for each in ends(b.effects) if each.request_id == request_id)
    assert found.fault is not None
    return found.fault


def scope(b: Bench, name: str = "a") -> Any:
    return b.core.ledger.accounts[name].scope


def is_clean(b: Bench) -> bool:
    """Nothing is held by anybody."""
    ledger = b.core.ledger
    scopes = [each for a in ledger.accounts.values() for each in (a.scope, *a.models.values())]
    scopes += [*ledger.organizations.values(), *ledger.clients.values()]
    return (
        not ledger.holds
        and not any(each.holders for each in scopes)
        and not any(measure.window.under_way for each in scopes for measure in each.measures())
    )


class TestConcurrency:
    def test_a_burst_of_refusals_cuts_the_account_and_everybody_keeps_the_place(self) -> None:
        b = with_rules()
        names = [f"r{number:02}" for number in range(12)]
        submit(b, *names)
        assert active(b) == names[:10]
        for name in names[:10]:
            b.start(name)
        for name in names[6:10]:
            b.time += 0.01
            b.finish(name, fault=FULL)
        assert scope(b).concurrency.limit == 6
        assert active(b) == names[:6]
        assert all(b.state(name) == "queued" for name in names[6:])
        b.finish(names[0])
        assert active(b) == names[1:7], "the oldest that was refused goes first"
        assert record(b, names[6]).attempt == 2

    def test_one_more_is_tried_when_somebody_waits_and_not_before(self) -> None:
        b = with_rules()
        names = [f"r{number:02}" for number in range(10)]
        submit(b, *names)
        b.start("r09")
        b.time += 0.1
        b.finish("r09", fault=FULL)
        due = b.core.next_deadline()
        assert due is not None
        assert due - b.time == pytest.approx(1.0)
        assert orders(wake(b)) != []
        assert scope(b).concurrency.limit == 10
        assert [(each["what"], each["limit"]) for each in scope(b).history.as_plain()] == [("cut", 9), ("raised", 10)]

    def test_refused_alone_the_account_pauses(self) -> None:
        """Somebody else uses the key: less than one call at once cannot be tried."""
        b = with_rules()
        submit(b, "r")
        assert orders(refuse(b, "r", FULL)) == []
        assert scope(b).pause.lasts(b.time + 1.0)
        assert orders(wake(b)) != []

    @pytest.mark.parametrize("models", [{}, {"m": Limits(tokens_per_minute=1_000_000)}])
    def test_a_models_limit_where_the_provider_counts_by_model(self, models: dict[str, Limits]) -> None:
        b = with_rules(one(concurrency_of="model", models=models), models=("m", "n"))
        submit(b, "r1", "r2", "r3")
        refuse(b, "r3", FULL)
        model = b.core.ledger.scope_of_model(Target("a", "m"))
        assert model is not None
        assert model.concurrency is not None
        assert model.concurrency.limit == 2
        assert scope(b).concurrency.limit == 10
        assert active(b) == ["r1", "r2"], "it is not sent again at once"
        for name in ("r1", "r2"):
            b.start(name)
            b.finish(name)
        assert active(b) == ["r3"], "the slots of those that were out at the first refusal come back"
        b.start("r3")
        b.finish("r3")
        assert is_clean(b)

    def test_an_organisation_without_a_limit_of_calls_leaves_the_lesson_to_the_account(self) -> None:
        rules = LedgerRules(
            accounts={"a": account(organization="o")}, organizations={"o": Limits(tokens_per_minute=1_000_000)}
        )
        b = with_rules(rules)
        submit(b, "r1", "r2", "r3")
        refuse(b, "r3", FULL)
        assert scope(b).concurrency.limit == 2
        assert active(b) == ["r1", "r2"]

    def test_an_organisation_with_a_limit_of_calls_has_the_lesson(self) -> None:
        rules = LedgerRules(accounts={"a": account(organization="o")}, organizations={"o": Limits(concurrency=9)})
        b = with_rules(rules)
        submit(b, "r1", "r2", "r3")
        refuse(b, "r3", FULL)
        learned = b.core.ledger.organizations["o"].concurrency
        assert learned is not None
        assert (learned.limit, scope(b).concurrency.limit) == (2, 10)

    def test_a_call_that_was_cancelled_holds_its_slot_for_the_lag(self) -> None:
        b = with_rules(one(concurrency=1, cancel_lag=2.0))
        submit(b, "r", "next")
        b.start("r")
        b.do(CancelAsked("c", "r"))
        b.finish("r", fault=Fault(code="cancelled", message="m"))
        assert (b.state("r"), active(b)) == ("cancelled", [])
        assert b.core.next_deadline() == b.time + 2.0
        assert len(orders(b.do(Tick(), after=1.9))) == 0
        assert len(orders(b.do(Tick(), after=0.1))) == 1

    def test_a_call_that_was_cancelled_before_it_began_does_not(self) -> None:
        b = with_rules(one(concurrency=1, cancel_lag=2.0))
        submit(b, "r", "next")
        b.do(CancelAsked("c", "r"))
        b.finish("r", fault=Fault(code="cancelled", message="m"))
        assert active(b) == ["next"]


class TestPauses:
    def test_many_refusals_of_one_burst_make_one_pause_and_all_wait_again(self) -> None:
        b = with_rules()
        names = [f"r{number}" for number in range(5)]
        submit(b, *names)
        for name in names:
            refuse(b, name, RATE, after=0.01)
        assert active(b) == []
        lessons = [lesson["what"] for lesson in scope(b).history.as_plain()]
        assert lessons == ["paused"]
        began = b.time
        out = orders(wake(b))
        assert len(out) == 5
        assert 5.0 - 0.05 <= b.time - began < 5.5
        assert [record(b, name).attempt for name in names] == [2] * 5

    def test_what_waiting_takes_is_not_of_the_timeout(self) -> None:
        b = with_rules()
        submit(b, "r", timeout=7.0)
        for _ in range(4):
            refuse(b, "r", fault("rate_limited", limit="rpm", retry_after=50.0))
            [(_, _, seconds)] = orders(wake(b))
            assert seconds == 7.0

    def test_a_request_may_ask_for_one_call_alone(self) -> None:
        b = with_rules()
        submit(b, "r", max_attempts=1)
        [end] = ends(refuse(b, "r", RATE))
        assert end.fault == RATE

    def test_other_accounts_go_on(self) -> None:
        b = with_rules()
        submit(b, "r")
        refuse(b, "r", RATE)
        submit(b, "other", account="b")
        assert active(b) == ["other"]

    def test_an_operator_ends_a_pause(self) -> None:
        b = with_rules()
        submit(b, "r")
        refuse(b, "r", RATE)
        assert len(orders(b.do(AccountResumed("a")))) == 1

    def test_a_refused_call_gives_everything_back(self) -> None:
        b = with_rules(one(requests_per_minute=5, tokens_per_minute=100))
        submit(b, "r", tokens=Usage(10, 10))
        refuse(b, "r", RATE)
        assert [measure.window.used for measure in scope(b).measures()] == [0, 0]
        assert is_clean(b)


class TestStops:
    @pytest.mark.parametrize("why", [NO_MONEY, DEAD_KEY])
    def test_an_account_stops_until_it_is_resumed(self, why: Fault) -> None:
        b = with_rules(one(concurrency=2))
        submit(b, "r1", "r2", "w1", "w2")
        refuse(b, "r1", why)
        assert end_of(b, "r1").code == why.code
        for name in ("w1", "w2"):
            assert end_of(b, name).code == "account_stopped"
            assert end_of(b, name).details["cause"] == why.code
        [refused] = to_clients(b.submit("new"))
        assert isinstance(refused, Rejected)
        assert refused.fault.code == "account_stopped"
        b.start("r2")
        b.finish("r2")
        assert b.state("r2") == "completed", "what is out may end well"
        assert b.core.next_deadline() is None
        assert is_clean(b)
        assert b.do(AccountResumed("a"), after=1.0) == [Answer(True)]
        assert b.do(AccountResumed("a")) == [Answer(False)]
        submit(b, "again")
        assert active(b) == ["again"]

    def test_waiting_requests_go_to_a_fallback(self) -> None:
        b = with_rules(one(concurrency=1))
        submit(b, "r1", "plain")
        submit(b, "w", fallbacks=("b/m",))
        refuse(b, "r1", NO_MONEY)
        assert end_of(b, "plain").code == "account_stopped"
        assert record(b, "w").provider == "b"
        assert active(b) == ["w"]
        submit(b, "new", fallbacks=("b/m",))
        assert record(b, "new").provider == "b"

    @pytest.mark.parametrize("why", [FULL, RATE, BUSY])
    def test_a_call_that_is_refused_after_the_stop_ends_too(self, why: Fault) -> None:
        """Else it would wait where nothing goes."""
        b = with_rules()
        submit(b, "r1", "r2")
        b.start("r2")
        refuse(b, "r1", NO_MONEY)
        b.time += 0.1
        b.finish("r2", fault=why)
        for _ in range(3):
            if b.core.next_deadline() is not None:
                wake(b)
        assert end_of(b, "r2").code in ("account_stopped", why.code)
        assert b.time < 1000.0 + TIMEOUT
        assert len(b.core.scheduler) == 0

    def test_a_request_that_rests_when_the_account_stops_ends(self) -> None:
        b = with_rules()
        submit(b, "r1", "r2")
        refuse(b, "r2", BUSY)
        refuse(b, "r1", NO_MONEY)
        assert end_of(b, "r2").code == "account_stopped"

    def test_a_call_whose_worker_dies_after_the_stop_ends_too(self) -> None:
        b = with_rules()
        submit(b, "r1", "r2")
        refuse(b, "r1", NO_MONEY)
        b.do(WorkerDown(1, "died"))
        assert end_of(b, "r2").code == "account_stopped"

    def test_a_part_that_comes_after_the_stop_ends_it_too(self) -> None:
        b = with_rules()
        submit(b, "r1", "r2")
        refuse(b, "r1", NO_MONEY)
        b.start("r2")
        b.do(Reported(1, Continues("r2", b.holder("r2")[1], b"{}")))
        assert end_of(b, "r2").code == "account_stopped"

    def test_what_went_out_before_an_operator_resumed_it_says_nothing_new(self) -> None:
        b = with_rules()
        submit(b, "r1", "r2")
        refuse(b, "r1", NO_MONEY)
        b.do(AccountResumed("a"), after=1.0)
        submit(b, "new")
        refuse(b, "r2", NO_MONEY)
        assert b.core.ledger.stopped("a", b.time) is None
        refuse(b, "new", NO_MONEY)
        assert b.core.ledger.stopped("a", b.time) is not None

    def test_a_plans_window_stops_it_until_the_moment_that_is_named(self) -> None:
        b = with_rules()
        submit(b, "r1")
        refuse(b, "r1", fault("rate_limited", limit="window", retryable=False, retry_after=1_800.0))
        [refused] = to_clients(b.submit("new"))
        assert isinstance(refused, Rejected)
        assert refused.fault.details["retry_after"] == pytest.approx(1_800.0)
        b.time += 1_800.0
        submit(b, "later")
        assert active(b) == ["later"]

    def test_a_window_without_a_moment(self) -> None:
        b = with_rules()
        submit(b, "r1")
        refuse(b, "r1", fault("rate_limited", limit="tpd", retryable=False))
        stop = b.core.ledger.stopped("a", b.time)
        assert stop is not None
        assert stop.until == b.time + UNKNOWN_WINDOW

    def test_a_refusal_of_one_permission_stops_nothing(self) -> None:
        b = with_rules()
        submit(b, "r1")
        refuse(b, "r1", fault("credential_refused", retryable=False, scope="account", status=403))
        assert b.core.ledger.stopped("a", b.time) is None

    def test_resume_of_a_stranger(self) -> None:
        [answer] = with_rules().do(AccountResumed("zz"))
        assert isinstance(answer, Answer)
        assert answer.fault is not None


def clients(**rules: ClientRules) -> LedgerRules:
    return LedgerRules(clients=rules)


class TestBudgets:
    def test_concurrency_does_not_bypass_a_clients_budget(self) -> None:
        b = with_rules(clients(c=ClientRules(tokens_per_day=100)))
        submit(b, *(f"r{number}" for number in range(6)), tokens=Usage(20, 20))
        assert active(b) == ["r0", "r1"], "80 are reserved, 20 are left"
        submit(b, "other", client="d", tokens=Usage(20, 20))
        assert "other" in active(b), "nobody else is held back"
        b.start("r0")
        b.do(Reported(1, Finished("r0", b.holder("r0")[1], b"ok", usage=Usage(20, 0))))
        assert active(b) == ["other", "r1", "r2"]
        b.start("r1")
        b.do(Reported(1, Finished("r1", b.holder("r1")[1], b"ok", usage=Usage(20, 20))))
        b.start("r2")
        b.do(Reported(1, Finished("r2", b.holder("r2")[1], b"ok", usage=Usage(20, 20))))
        for name in ("r3", "r4", "r5"):
            assert end_of(b, name).code == "budget_exhausted", "100 are used"
        found = end_of(b, "r3").details
        assert (found["used"], found["limit"], found["which"], found["of"]) == (100, 100, "tokens_per_day", "client")
        [refused] = to_clients(b.submit("new", tokens=Usage(1, 0)))
        assert isinstance(refused, Rejected)
        assert refused.fault.code == "budget_exhausted"

    def test_more_than_a_whole_budget_is_refused_at_once(self) -> None:
        b = with_rules(clients(c=ClientRules(tokens_per_day=100)))
        [refused] = to_clients(b.submit("r", tokens=Usage(60, 60)))
        assert isinstance(refused, Rejected)
        assert refused.fault.code == "budget_exhausted"

    def test_a_client_that_the_rules_do_not_name_has_a_budget_of_its_own(self) -> None:
        b = with_rules(clients(default=ClientRules(tokens_per_day=100)))
        for name in ("x", "y"):
            submit(b, f"{name}1", f"{name}2", client=name, tokens=Usage(30, 30))
        assert active(b) == ["x1", "y1"]

    def test_money(self) -> None:
        rules = LedgerRules(accounts={"a": account(money_per_day=1.0, prices={"m": Price(input=1.0, output=2.0)})})
        b = with_rules(rules)
        submit(b, "r1", "r2", "r3", tokens=Usage(100_000, 150_000))  # 0.4 each
        assert active(b) == ["r1", "r2"]
        b.start("r1")
        b.do(Reported(1, Finished("r1", b.holder("r1")[1], b"ok", usage=Usage(100_000, 100_000))))  # 0.3
        assert active(b) == ["r2"]
        b.start("r2")
        b.do(Reported(1, Finished("r2", b.holder("r2")[1], b"ok", usage=Usage(100_000, 100_000))))
        assert active(b) == ["r3"], "exactly what is left"

    def test_a_refused_call_costs_nothing(self) -> None:
        b = with_rules(clients(c=ClientRules(tokens_per_day=100)))
        submit(b, "r", tokens=Usage(50, 50))
        refuse(b, "r", RATE)
        assert b.core.ledger.clients["c"].days[0].window.used == 0
        assert is_clean(b)

    def test_a_day_later_there_is_room(self) -> None:
        b = with_rules(clients(c=ClientRules(tokens_per_day=100)))
        submit(b, "r", tokens=Usage(50, 50))
        b.start("r")
        b.do(Reported(1, Finished("r", b.holder("r")[1], b"ok", usage=Usage(50, 50))))
        [refused] = to_clients(b.submit("now", tokens=Usage(50, 50)))
        assert isinstance(refused, Rejected)
        wait = refused.fault.details["retry_after"]
        assert isinstance(wait, float)
        assert 86_400.0 <= wait <= 86_700.0
        b.time += wait
        submit(b, "later", tokens=Usage(50, 50))
        assert active(b) == ["later"]

    def test_idle_clients_are_forgotten(self) -> None:
        """Any string may be a client's name."""
        b = with_rules(clients(default=ClientRules(requests_per_minute=5)))
        for number in range(2_000):
            name = f"r{number}"
            submit(b, name, client=f"client{number}")
            b.start(name)
            b.finish(name)
            b.time += 1.0
        assert len(b.core.ledger.clients) < 500


class TestRates:
    def test_the_supervisors_rate_is_kept_in_any_minute(self) -> None:
        b = with_rules(LedgerRules(requests_per_minute=3))
        submit(b, "r1", "r2")
        b.time += 30.0
        submit(b, "r3", "r4", "r5")
        assert active(b) == ["r1", "r2", "r3"]
        assert b.core.next_deadline() is not None
        b.time += 29.9
        assert orders(b.do(Tick())) == []
        b.time += 0.1
        assert len(orders(b.do(Tick()))) == 2

    def test_a_client_at_its_rate_holds_back_nobody_else(self) -> None:
        b = with_rules(clients(c=ClientRules(requests_per_minute=2)))
        submit(b, "r1", "r2", "r3", "r4")
        submit(b, "other", client="d")
        assert active(b) == ["other", "r1", "r2"]
        began = b.time
        while "r3" not in active(b):
            wake(b)
        assert 60.0 <= b.time - began < 60.1
        assert "r4" in active(b)

    @pytest.mark.parametrize(
        "rules", [LedgerRules(requests_per_minute=2), clients(h=ClientRules(requests_per_minute=2))]
    )
    def test_held_sessions_and_functions_count_and_do_not_wait(self, rules: LedgerRules) -> None:
        b = with_rules(rules)
        [taken] = b.do(SessionAsked("h", Submit("s1", "a", "m", b"", b"{}"), "session_1"))
        assert isinstance(taken, Answer)
        assert taken.fault is None
        b.do(FunctionAsked("h", "h", Submit("f1", "a", "m", b"x", b"{}"), "session_f1"))
        [refused] = b.do(SessionAsked("h", Submit("s9", "a", "m", b"", b"{}"), "session_9"))
        assert isinstance(refused, Answer)
        assert refused.fault is not None
        assert refused.fault.code == "capacity_full"
        [rejected] = to_clients(b.do(FunctionAsked("h", "h", Submit("f2", "a", "m", b"x", b"{}"), "session_f2")))
        assert isinstance(rejected, Rejected)
        assert rejected.fault.details["retry_after"] == pytest.approx(60.0)
        submit(b, "call", client="h")
        assert b.state("call") == "queued"
        began = b.time
        while b.state("call") == "queued":
            wake(b)
        assert 60.0 <= b.time - began < 60.1

    def test_an_accounts_rate_counts_from_the_answer_on(self) -> None:
        """The provider's minute may begin as late as that."""
        b = with_rules(one(requests_per_minute=1))
        submit(b, "r1", "r2")
        b.start("r1")
        b.time += 5.0
        b.do(Reported(1, Piece("r1", b.holder("r1")[1], b"p")))
        b.time += 3.0
        b.finish("r1")
        assert b.core.next_deadline() == pytest.approx(1065.0)
        assert orders(b.do(Tick(), after=56.9)) == []
        assert len(orders(b.do(Tick(), after=0.1))) == 1

    def test_an_organisations_tokens_over_two_keys(self) -> None:
        rules = LedgerRules(
            accounts={"a": account(organization="o"), "b": account(organization="o")},
            organizations={"o": Limits(tokens_per_minute=100)},
        )
        b = with_rules(rules)
        submit(b, "r1", account="a", tokens=Usage(30, 30))
        submit(b, "r2", account="b", tokens=Usage(30, 30))
        submit(b, "r3", account="b", tokens=Usage(20, 20))
        assert active(b) == ["r1"]
        assert b.core.ledger.organizations["o"].minutes[0].window.used == 60

    def test_an_estimate_is_corrected_by_the_worker_and_by_usage(self) -> None:
        b = with_rules(one(tokens_per_minute=1_000))
        submit(b, "r", tokens=Usage(100, 400))
        window = scope(b).minutes[0].window
        assert window.used == 500
        b.do(Reported(1, Started("r", b.holder("r")[1], Usage(200, 400))))
        assert window.used == 600
        b.do(Reported(1, Finished("r", b.holder("r")[1], b"ok", usage=Usage(150, 50))))
        assert (window.used, window.under_way) == (200, 0)

    def test_what_is_charged_in_advance_is_charged_whatever_comes(self) -> None:
        b = with_rules(one(tokens_per_minute=1_000, charge="advance"))
        submit(b, "r", tokens=Usage(100, 400))
        b.start("r")
        b.do(Reported(1, Finished("r", b.holder("r")[1], b"ok", usage=Usage(150, 50))))
        assert scope(b).minutes[0].window.used == 550

    @pytest.mark.parametrize(
        ("why", "used"),
        [
            (fault("provider_rejected", retryable=False, scope="request"), 0),
            (fault("provider_unreachable", retryable=False, in_doubt=False), 0),
            (fault("broken_answer", in_doubt=True, retryable=False), 500),
            (Fault(code="timeout", message="m", details={"which": "total"}), 500),
        ],
    )
    def test_what_a_failed_call_leaves(self, why: Fault, used: int) -> None:
        b = with_rules(one(tokens_per_minute=1_000))
        submit(b, "r", tokens=Usage(100, 400))
        refuse(b, "r", why)
        assert scope(b).minutes[0].window.used == used
        assert is_clean(b)


class TestLargeRequests:
    def test_a_request_that_does_not_fit_is_not_starved_by_small_ones_of_its_account(self) -> None:
        b = with_rules(one(tokens_per_minute=100, concurrency=100))
        for number in range(8):
            submit(b, f"s{number}", tokens=Usage(5, 5))
        submit(b, "big", client="d", tokens=Usage(50, 50))
        began, number = b.time, 8
        while b.state("big") == "queued":
            assert b.time - began < 300.0
            for name in active(b):
                b.start(name)
                b.do(Reported(1, Finished(name, b.holder(name)[1], b"ok", usage=Usage(5, 5))))
            submit(b, f"s{number}", tokens=Usage(5, 5))
            number += 1
            b.do(Tick(), after=1.0)

    @pytest.mark.parametrize("rank", ["normal", "interactive"])
    def test_nor_by_those_of_another_account_of_its_organisation(self, rank: str) -> None:
        rules = LedgerRules(
            accounts={"a": account(organization="o"), "b": account(organization="o")},
            organizations={"o": Limits(tokens_per_minute=100)},
        )
        b = with_rules(rules)
        for number in range(8):
            submit(b, f"s{number}", tokens=Usage(5, 5))
        submit(b, "big", client="d", account="b", tokens=Usage(50, 50), priority=rank)
        began, number = b.time, 8
        while b.state("big") == "queued":
            assert b.time - began < 300.0
            for name in active(b):
                b.start(name)
                b.do(Reported(1, Finished(name, b.holder(name)[1], b"ok", usage=Usage(5, 5))))
            submit(b, f"s{number}", tokens=Usage(5, 5))
            number += 1
            b.do(Tick(), after=1.0)

    def organisation(self) -> Bench:
        """`big` of `d` waits on `b` for the tokens of an organisation that calls on `a` have used up; it has waited for long."""
        rules = LedgerRules(
            accounts={
                "a": account(organization="o"),
                "b": account(organization="o"),
                "c": account(tokens_per_minute=100),
            },
            organizations={"o": Limits(tokens_per_minute=100)},
        )
        b = bench(pool=100, accounts={"a": 10, "b": 10, "c": 10}, rules=rules)
        submit(b, "used", tokens=Usage(40, 40))
        submit(b, "big", client="d", account="b", tokens=Usage(50, 50), fallbacks=("c/m",))
        b.do(Tick(), after=31.0)
        assert b.core.ledger.organizations["o"].waits_for is b.core.requests["big"]
        submit(b, "small", account="a", tokens=Usage(5, 5))
        assert b.state("small") == "queued", "it would take what `big` waits for"
        return b

    def test_whoever_is_due_before_it_on_its_own_account_does_not_block_it_for_ever(self) -> None:
        """Two that wait for each other would stop the organisation."""
        b = self.organisation()
        b.core.scheduler._accounts["b"].classes[1]._flows["d"].tag += 5.0  # as if it had been served meanwhile
        submit(b, "due", client="e", account="b", tokens=Usage(5, 5))
        b.start("used")
        b.do(Reported(1, Finished("used", b.holder("used")[1], b"ok", usage=Usage(40, 40))))
        for _ in range(300):
            for name in active(b):
                b.start(name)
                b.do(Reported(1, Finished(name, b.holder(name)[1], b"ok", usage=Usage(5, 5))))
            b.do(Tick(), after=1.0)
        assert b.state("big") == b.state("due") == b.state("small") == "completed"

    def test_nobody_waits_for_one_that_was_cancelled(self) -> None:
        b = self.organisation()
        b.do(CancelAsked("d", "big"))
        assert b.state("small") == "allocated"

    def test_nobody_waits_for_one_that_waits_elsewhere(self) -> None:
        b = self.organisation()
        submit(b, "there", account="c", tokens=Usage(60, 0))
        b.core.attempts._move(b.core.requests["big"], Target("c", "m"), Now(b.time, b.time))
        b.do(Tick())
        assert b.state("big") == "queued", "its tokens do not fit there either"
        assert b.state("small") == "allocated"

    def test_nobody_waits_for_one_whose_client_is_held_back(self) -> None:
        b = self.organisation()
        b.core.scheduler.hold("d", b.time + 1_000.0)
        b.do(Tick())
        assert b.state("small") == "allocated"

    def test_nobody_waits_for_one_whose_account_takes_none(self) -> None:
        b = self.organisation()
        b.core.ledger.accounts["b"].scope.pause.until = b.time + 1_000.0
        b.do(Tick())
        assert b.state("small") == "allocated"

    def test_a_higher_class_passes(self) -> None:
        b = self.organisation()
        submit(b, "quick", account="a", tokens=Usage(5, 5), priority="interactive")
        assert b.state("quick") == "allocated"
        assert b.state("small") == "queued"


class TestQueue:
    def test_a_wait_ends_at_its_bound_and_says_where_it_stood(self) -> None:
        b = with_rules(one(concurrency=1))
        submit(b, "r1")
        b.start("r1")
        b.finish("r1")
        submit(b, "r2", "r3")
        submit(b, "w", queue_timeout=5.0)
        wake_at = b.core.next_deadline()
        assert wake_at is not None
        assert wake_at <= b.time + 5.02
        b.time += 5.02
        [end] = ends(b.do(Tick()))
        assert (end.request_id, end.state) == ("w", "timeout")
        assert end.fault is not None
        details = end.fault.details
        assert (details["which"], details["seconds"], details["position"], details["sent"]) == ("queue", 5.0, 1, False)
        assert isinstance(details["predicted_wait"], float)
        assert len(b.core.waits) == 0

    def test_who_was_dispatched_in_time_is_past_it(self) -> None:
        b = with_rules(one(concurrency=1))
        submit(b, "r", queue_timeout=1.0)
        assert ends(b.do(Tick(), after=5.0)) == []

    def test_who_is_told_to_wait_has_the_same_bound(self) -> None:
        b = with_rules()
        submit(b, "r", queue_timeout=3.0)
        refuse(b, "r", fault("rate_limited", limit="rpm", retry_after=50.0))
        b.time += 3.0
        [end] = ends(b.do(Tick()))
        assert end.fault is not None
        assert end.fault.details["which"] == "queue"

    def test_who_rests_between_two_calls_has_not(self) -> None:
        b = with_rules()
        submit(b, "r", queue_timeout=0.1)
        refuse(b, "r", BUSY)
        assert len(b.core.waits) == 0

    def test_cancelled_while_it_waits(self) -> None:
        b = with_rules(one(concurrency=1))
        submit(b, "r", "w", queue_timeout=9.0)
        [end] = ends(b.do(CancelAsked("c", "w")))
        assert end.state == "cancelled"
        assert len(b.core.scheduler) == 0
        assert len(b.core.waits) == 0

    def test_a_name_shares_where_two_connections_have_it(self) -> None:
        b = with_rules(clients(team=ClientRules(requests_per_minute=1)))
        for number in (1, 2):
            request = Submit(f"r{number}", "a", "m", b"{}", b"{}")
            b.do(Submitted(f"connection{number}", request, f"session_{number}", "team"))
        assert active(b) == ["r1"]

    def test_a_request_that_failed_before_is_ended_once_when_nobody_waits_for_its_circuit_any_longer(self) -> None:
        """It has been in the queue of its target twice."""
        b = bench(
            pool=10,
            accounts={"a": 1},
            retry_rules=RetryRules(first_wait=0.0, attempts=5),
            circuit_rules=CircuitRules(failures=1, first_pause=100.0, patience=10.0),
        )
        submit(b, "r0", "r1", "r2", timeout=1_000.0)
        b.start("r0")
        b.finish("r0")
        fail(b, BUSY, "r1")
        effects = b.do(Tick(), after=11.0)
        assert [(each.request_id, each.state) for each in ends(effects)] == [("r1", "error"), ("r2", "error")]


class TestAffinity:
    def test_a_conversation_keeps_its_worker_while_that_has_room(self) -> None:
        b = with_rules(workers=3)
        submit(b, "first", affinity="x")
        home = b.holder("first")[0]
        for number in range(4):
            submit(b, f"x{number}", affinity="x")
            assert b.holder(f"x{number}")[0] == home
        for number in range(4):
            submit(b, f"plain{number}")
            assert b.holder(f"plain{number}")[0] != home

    def test_a_worker_that_is_gone_or_full_is_not_waited_for(self) -> None:
        b = bench(pool=100, accounts={"a": 100}, workers=2)
        homes = []
        for number in range(30):
            submit(b, f"x{number}", affinity="x")
            homes.append(b.holder(f"x{number}")[0])
        assert set(homes) == {1, 2}, "it has a bound"
        b.do(WorkerDown(1, "died"))
        submit(b, "later", affinity="x")
        assert b.holder("later")[0] == 2

    def test_it_is_remembered_for_so_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("callpool.manager.core.dispatching.MAX_AFFINITIES", 3)
        b = bench(pool=100, accounts={"a": 100}, workers=2)
        for number in range(10):
            submit(b, f"x{number}", affinity=f"x{number}")
        assert len(b.core.dispatching._workers) == 3


@pytest.mark.parametrize(
    ("why", "began", "expected"),
    [
        (None, True, "used"),
        (fault("provider_error"), False, "unused"),
        (fault("rate_limited"), True, "unused"),
        (fault("timeout", sent=False), True, "unused"),
        (fault("provider_unreachable", in_doubt=False), True, "unused"),
        (fault("provider_unreachable", in_doubt=True), True, "doubt"),
        (fault("timeout"), True, "doubt"),
        (fault("cancelled"), True, "doubt"),
        (fault("interrupted"), True, "doubt"),
        (fault("worker_lost"), True, "doubt"),
        (fault("broken_answer", in_doubt=True), True, "doubt"),
        (fault("provider_error"), True, "failed"),
    ],
)
def test_what_came_of_a_call(why: Fault | None, *, began: bool, expected: str) -> None:
    assert outcome_of(why, began=began) == expected
