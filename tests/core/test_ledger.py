"""The ledger: what is reserved, by whom, and that all of it comes back; against a book kept in plain lists."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core.faults import Fault
from callpool.manager.core.learning import USUAL_PAUSE
from callpool.manager.core.ledger import MAX_MODELS, Ledger, Outcome
from callpool.manager.core.limits import AccountRules, ClientRules, Counting, LedgerRules, Limits, Price, Usage
from callpool.manager.core.requests import Now
from callpool.manager.core.retry import Target
from callpool.manager.core.scopes import MICRO, NO_COST, Cost, Scope
from callpool.manager.core.windows import DAY, MINUTE, NEVER

from .build import STEADY

A, B = Target("a", "m"), Target("b", "m")
OTHER = Target("a", "n")
LAG = 5.0
RULES = LedgerRules(
    accounts={
        "a": AccountRules(
            limits=Limits(concurrency=4, requests_per_minute=6, tokens_per_minute=300),
            models={"m": Limits(concurrency=3, tokens_per_minute=200)},
            prices={"m": Price(input=1.0, output=3.0, cached_input=0.25)},
            counting=Counting(cancel_lag=LAG),
            organization="o",
        ),
        "b": AccountRules(
            limits=Limits(concurrency=2, tokens_per_day=1_000), counting=Counting(charge="advance"), organization="o"
        ),
    },
    organizations={"o": Limits(concurrency=5, tokens_per_minute=400)},
    clients={
        "x": ClientRules(tokens_per_day=2_000, money_per_day=0.002),
        "default": ClientRules(requests_per_minute=8),
    },
    requests_per_minute=9,
)


def now(time: float) -> Now:
    return Now(time, time)


def all_scopes(ledger: Ledger) -> dict[tuple[str, str], Scope]:
    found = [ledger.supervisor, *ledger.organizations.values(), *ledger.clients.values()]
    for account in ledger.accounts.values():
        found += [account.scope, *account.models.values()]
    return {(scope.kind, scope.name): scope for scope in found if scope is not None}


def may_go(ledger: Ledger, target: Target, client: str, cost: Cost, time: float) -> bool:
    return all(
        scope.opens_at(now(time)) <= time and scope.fits_at(cost, time) <= time
        for scope in ledger.scopes(target, client)
    )


class Book:
    """What should count, call by call: for each scope the names of its limits, amounts and ends."""

    def __init__(self) -> None:
        self.calls: dict[str, tuple[Target, str, Usage]] = {}
        self.lines: list[dict[str, Any]] = []
        self.lagging: list[tuple[tuple[str, str], float]] = []

    def open(self, request_id: str, target: Target, client: str, usage: Usage, time: float) -> None:
        self.calls[request_id] = target, client, usage
        for key, name, limit, moment in limits_of(target, client):
            amount = amount_of(name, limit, usage, target)
            ends = time + MINUTE if moment == "dispatch" else None
            self.lines.append(
                {
                    "id": request_id,
                    "scope": key,
                    "name": name,
                    "limit": limit,
                    "moment": moment,
                    "amount": amount,
                    "ends": ends,
                }
            )

    def of(self, request_id: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["id"] == request_id]

    def used(self, key: tuple[str, str], name: str, time: float) -> tuple[int, int]:
        """(all that counts, of that under way)."""
        lines = [line for line in self.lines if (line["scope"], line["name"]) == (key, name)]
        under_way = sum(line["amount"] for line in lines if line["ends"] is None)
        return under_way + sum(
            line["amount"] for line in lines if line["ends"] is not None and line["ends"] > time
        ), under_way


def limits_of(target: Target, client: str) -> list[tuple[tuple[str, str], str, int, str]]:
    """(scope, limit, how much, what ends it) of all that limit such a call in time, by hand."""
    found: list[tuple[tuple[str, str], str, int, str]] = [(("supervisor", ""), "requests_per_minute", 9, "dispatch")]
    if client == "x":
        found += [(("client", "x"), "tokens_per_day", 2_000, "end"), (("client", "x"), "money_per_day", 2_000, "end")]
    else:
        found.append((("client", client), "requests_per_minute", 8, "dispatch"))
    if target.provider == "a":
        found.append((("account", "a"), "requests_per_minute", 6, "answer"))
        found.append((("account", "a"), "tokens_per_minute", 300, "end"))
        if target.model == "m":
            found.append((("model", "a/m"), "tokens_per_minute", 200, "end"))
    else:
        found.append((("account", "b"), "tokens_per_day", 1_000, "end"))
    found.append((("organization", "o"), "tokens_per_minute", 400, "answer"))  # one of its keys is charged in advance
    return found


def amount_of(name: str, limit: int, usage: Usage, target: Target) -> int:
    if name == "requests_per_minute":
        return 1
    if name == "tokens_per_minute":
        return min(limit, usage.prompt + usage.answer)
    if name == "tokens_per_day":
        return usage.prompt + usage.answer
    return money(usage) if target == A else 0


def money(usage: Usage) -> int:
    cached = min(usage.cached, usage.prompt)
    return -(-(4 * (usage.prompt - cached) + cached + 12 * usage.answer) // 4)


Step = tuple[str, int, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["reserve"] * 6
            + ["expect", "answered", "answered", "used", "used", "unused", "failed", "doubt", "pass", "slot"]
        ),
        st.integers(0, 12),
        st.integers(1, 12),
        st.integers(0, 5),
    ),
    min_size=30,
    max_size=80,
)
"""Long ones: short ones hardly begin a call."""


@STEADY
@given(steps)
def test_against_a_book(script: list[Step]) -> None:  # noqa: C901 - one branch for each verb
    ledger, book, time = Ledger(RULES), Book(), 1_000.0
    slots: dict[str, tuple[str, str]] = {}
    for number, (verb, first, second, which) in enumerate(script, start=1):
        usage = Usage(5 * first, 5 * second, first)
        ids = list(book.calls)
        request_id = ids[which % len(ids)] if ids else ""
        if verb == "reserve":
            target, client = (A, A, B, OTHER)[which % 4], "xyz"[first % 3]
            given_cost = ledger.cost(target, Usage(5 * first, 5 * second))
            exact = Cost(usage, usage.prompt + usage.answer, money(usage) if target == A else 0)
            assert given_cost.usage.answer == 5 * second
            if may_go(ledger, target, client, exact, time):
                ledger.reserve(f"r{number}", number, target, client, exact, time)
                book.open(f"r{number}", target, client, usage, time)
        elif verb == "slot":
            if ledger.full_account("b", time) is None and ledger.full_rate("y", now(time)) is None:
                ledger.take_slot(f"s{number}", number, "b", "y", now(time))
                slots[f"s{number}"] = "b", "y"
                for key, name in ((("supervisor", ""), 9), (("client", "y"), 8)):
                    book.lines.append(
                        {"id": "", "scope": key, "name": "requests_per_minute", "limit": name, "moment": "dispatch",
                         "amount": 1, "ends": time + MINUTE}
                    )  # fmt: skip
        elif verb == "pass":
            time += first / 2
        elif request_id:
            target, client, before = book.calls[request_id]
            if verb == "answered":
                ledger.answered(request_id, time)
                for line in book.of(request_id):
                    if line["moment"] == "answer" and line["ends"] is None:
                        line["ends"] = time + MINUTE
            elif verb == "expect":
                ledger.reckoning._known.clear()
                better = Usage(usage.prompt, usage.answer)
                ledger.expect(request_id, better, time)
                book.calls[request_id] = target, client, better
                for line in book.of(request_id):
                    if line["ends"] is None or line["ends"] > time:
                        line["amount"] = amount_of(line["name"], line["limit"], better, target)
            else:
                told = usage if verb == "used" else None
                ledger.settle(request_id, verb, told, time)  # type: ignore[arg-type]
                ledger.reckoning._known.clear()
                settle_in(book, request_id, verb, told, before, time)
                if verb == "doubt" and target.provider == "a":
                    keys = [("account", "a"), ("organization", "o")] + ([("model", "a/m")] if target == A else [])
                    book.lagging += [(key, time + LAG) for key in keys]
                del book.calls[request_id]
        elif slots:
            gone = next(iter(slots))
            del slots[gone]
            ledger.settle(gone, "used", None, time)
        agree(ledger, book, slots, time)
    for request_id in [*book.calls, *slots]:
        ledger.settle(request_id, "unused", None, time)
    time += DAY + MINUTE + 300.0
    for scope in all_scopes(ledger).values():
        assert scope.is_idle(time)
        assert not scope.is_full(time)
        assert not scope.lagging
    assert ledger.holds == {}


def settle_in(book: Book, request_id: str, verb: str, told: Usage | None, before: Usage, time: float) -> None:
    target = book.calls[request_id][0]
    lines = book.of(request_id)
    if verb == "unused":
        for line in lines:
            if line["ends"] is None or line["ends"] > time:
                line["amount"] = 0
            line["ends"] = time if line["ends"] is None else line["ends"]
        return
    used = told or (Usage() if verb == "failed" else before)
    charged = used
    if target.provider == "b":  # in advance: prompt as it was, and the limit of the answer
        charged = Usage(told.prompt if told else before.prompt, before.answer)
    for line in lines:
        if line["ends"] is None or line["ends"] > time:
            of = used if line["name"].endswith("_per_day") else charged
            line["amount"] = amount_of(line["name"], line["limit"], of, target)
        if line["ends"] is None:
            seconds = DAY if line["name"].endswith("_per_day") else MINUTE
            arrived = time + LAG if verb == "doubt" and target.provider == "a" else time
            ends = arrived + seconds
            line["ends"] = -(-ends // 300.0) * 300.0 if seconds == DAY else ends


def agree(ledger: Ledger, book: Book, slots: dict[str, tuple[str, str]], time: float) -> None:
    scopes = all_scopes(ledger)
    assert ledger.holds.keys() == book.calls.keys() | slots.keys()
    for key, scope in scopes.items():
        held = {request_id for request_id, call in book.calls.items() if key in keys_of(*call[:2])}
        if key in (("account", "b"), ("organization", "o")):
            held |= slots.keys()
        assert scope.holders.keys() == held, "every slot has its owner"
        lagging = sum(each == key and until > time for each, until in book.lagging)
        plain = scope.as_plain(time)
        assert plain["lagging"] == lagging
        if scope.concurrency is not None:
            assert len(held) + lagging <= scope.concurrency.limit or lagging
            assert len(held) <= scope.concurrency.limit
        for measure in scope.measures():
            used, under_way = book.used(key, measure.name, time)
            assert (measure.window.used, measure.window.under_way) == (used, under_way), (key, measure.name)


def keys_of(target: Target, client: str) -> set[tuple[str, str]]:
    keys = {("supervisor", ""), ("organization", "o"), ("client", client), ("account", target.provider)}
    return keys | ({("model", "a/m")} if target == A else set())


def ledger_of(rules: AccountRules, **more: Any) -> Ledger:
    return Ledger(LedgerRules(accounts={"a": rules}, **more))


def reserve(ledger: Ledger, request_id: str, number: int, time: float = 0.0, usage: Usage | None = None) -> None:
    cost = NO_COST if usage is None else ledger.cost(A, usage)
    ledger.reserve(request_id, number, A, "c", cost, time)


class TestScopes:
    def test_a_provider_that_is_no_account_reserves_nothing(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=1)))
        ledger.reserve("r", 1, Target("zz", "m"), "c", NO_COST, 0.0)
        ledger.take_slot("s", 2, "zz", "c", now(0.0))
        ledger.settle("r", "used", None, 0.0)
        assert ledger.holds == {}
        assert ledger.full_account("zz", 0.0) is None
        assert ledger.teacher(Target("zz", "m"), "concurrency") is None

    def test_words_about_what_is_no_call_or_is_over_are_nothing(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=1, tokens_per_minute=100)))
        ledger.expect("gone", Usage(5, 5), 0.0)
        ledger.answered("gone", 0.0)
        ledger.take_slot("held", 1, "a", "c", now(0.0))
        ledger.expect("held", Usage(5, 5), 0.0)
        ledger.settle("held", "used", Usage(5, 5), 1.0)
        assert ledger.accounts["a"].scope.minutes[0].window.used == 0

    def test_a_slot_is_given_back_once(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=1)))
        reserve(ledger, "r", 1)
        assert ledger.full_account("a", 0.0) is ledger.accounts["a"].scope
        ledger.settle("r", "used", None, 0.0)
        ledger.settle("r", "used", None, 0.0)
        assert ledger.full_account("a", 0.0) is None

    def test_an_organisation_can_be_full_where_the_account_is_not(self) -> None:
        rules = AccountRules(limits=Limits(concurrency=5), organization="o")
        ledger = ledger_of(rules, organizations={"o": Limits(concurrency=1)})
        reserve(ledger, "r", 1)
        assert ledger.full_account("a", 0.0) is not None

    @pytest.mark.parametrize("outcome", ["doubt", "used", "failed", "unused"])
    def test_the_slot_of_a_call_in_doubt_counts_on(self, outcome: Outcome) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=1), counting=Counting(cancel_lag=2.0)))
        reserve(ledger, "r", 1)
        ledger.settle("r", outcome, None, 10.0)
        scope, lags = ledger.accounts["a"].scope, outcome == "doubt"
        assert scope.is_full(11.9) is lags
        assert scope.opens_at(now(11.0)) == (12.0 if lags else 11.0)
        assert not scope.is_full(12.0)

    @pytest.mark.parametrize(("outcome", "ends"), [("doubt", 72.0), ("used", 70.0), ("failed", 70.0), ("unused", 0.0)])
    def test_the_minute_of_a_call_in_doubt_begins_when_it_must_have_arrived(
        self, outcome: Outcome, ends: float
    ) -> None:
        """Its worker was killed, and its request may be in the provider's hands a moment later."""
        ledger = ledger_of(
            AccountRules(limits=Limits(concurrency=9, requests_per_minute=2), counting=Counting(cancel_lag=2.0))
        )
        reserve(ledger, "r", 1)
        reserve(ledger, "other", 2)
        ledger.settle("r", outcome, None, 10.0)
        ledger.settle("other", "used", None, 11.0)
        scope = ledger.accounts["a"].scope
        [minute] = scope.minutes
        first, both = sorted((max(ends, 13.0), 71.0))
        assert scope.opens_at(now(13.0)) == first
        assert minute.window.room_at(2, 13.0) == both
        for time in (12.9, 69.9, 70.0, 71.0, 72.0):
            minute.window.forget(time)
            assert minute.window.used == (time < ends) + (time < 71.0), time

    def test_slots_that_count_on_for_different_times(self) -> None:
        """Accounts of one organisation may have lags of their own."""
        accounts = {
            name: AccountRules(limits=Limits(concurrency=5), counting=Counting(cancel_lag=lag), organization="o")
            for name, lag in (("a", 60.0), ("b", 1.0))
        }
        ledger = Ledger(LedgerRules(accounts=accounts, organizations={"o": Limits(concurrency=2)}))
        for number, target in enumerate((A, B)):
            ledger.reserve(f"r{number}", number, target, "c", NO_COST, 0.0)
            ledger.settle(f"r{number}", "doubt", None, 0.0)
        scope = ledger.organizations["o"]
        assert scope.is_full(0.9)
        assert scope.opens_at(now(0.9)) == 1.0
        assert not scope.is_full(1.0)
        assert len(scope.lagging) == 1

    def test_what_shuts_an_account_in_order(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=1, requests_per_minute=1)))
        scope = ledger.accounts["a"].scope
        assert scope.opens_at(now(5.0)) == 5.0
        reserve(ledger, "r", 1)
        assert scope.opens_at(now(5.0)) == NEVER, "its end is an event"
        ledger.settle("r", "used", None, 5.0)
        assert scope.opens_at(now(6.0)) == 65.0
        scope.pause.until = 70.0
        assert scope.opens_at(now(6.0)) == 70.0
        scope.closed = "its server starts"
        assert scope.opens_at(now(6.0)) == NEVER
        assert ledger.accounts["a"].closed == "its server starts"
        reserve(ledger, "x", 2)
        assert ledger.stop("x", "a", Fault(code="quota_exhausted", message="m"), 100.0, now(6.0))
        assert scope.opens_at(now(6.0)) == 106.0
        assert ledger.stopped("a", 105.0) is not None
        assert ledger.stopped("a", 106.0) is None
        assert ledger.stopped("zz", 106.0) is None

    def test_a_request_larger_than_a_minute_takes_a_whole_one(self) -> None:
        """Or it would wait for ever."""
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=9, tokens_per_minute=100)))
        scope, cost = ledger.accounts["a"].scope, ledger.cost(A, Usage(500, 500))
        assert scope.fits_at(cost, 0.0) == 0.0
        reserve(ledger, "r", 1, usage=Usage(500, 500))
        assert scope.minutes[0].window.used == 100
        assert scope.fits_at(ledger.cost(A, Usage(1, 1)), 0.0) == NEVER
        ledger.settle("r", "used", Usage(900, 900), 5.0)
        assert scope.minutes[0].window.used == 100
        assert scope.fits_at(cost, 6.0) == 65.0

    def test_but_a_day_does_not(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=9, tokens_per_day=100)))
        found = ledger.overdrawn(A, Usage(60, 60), "c", 0.0, answers=True)
        assert found is not None
        assert (found.scope.kind, found.limit, found.wanted, found.at) == ("account", "tokens_per_day", 120, NEVER)
        assert ledger.overdrawn(A, Usage(50, 50), "c", 0.0, answers=True) is None

    def test_a_day_is_overdrawn_by_what_has_ended_alone(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=9, tokens_per_day=100)))
        reserve(ledger, "r", 1, usage=Usage(40, 40))
        assert ledger.overdrawn(A, Usage(20, 20), "c", 0.0, answers=True) is None, "it may bring something back"
        assert ledger.accounts["a"].scope.fits_at(ledger.cost(A, Usage(20, 20)), 0.0) == NEVER
        ledger.settle("r", "used", Usage(40, 40), 0.0)
        assert ledger.overdrawn(A, Usage(20, 20), "c", 0.0, answers=True) is not None


class TestMoney:
    @pytest.mark.parametrize(
        ("price", "usage", "micros"),
        [
            (Price(input=2.0, output=8.0), Usage(1_000, 500), 6_000),
            (Price(input=2.0, output=8.0, cached_input=0.5), Usage(1_000, 0, 400), 1_400),
            (Price(input=2.0, output=8.0), Usage(1_000, 0, 400), 2_000),
            (Price(input=2.0, cached_input=0.0), Usage(1_000, 0, 5_000), 0),
            (Price(input=0.3), Usage(1, 0), 1),
            (Price(), Usage(1_000, 1_000), 0),
        ],
    )
    def test_prices(self, price: Price, usage: Usage, micros: int) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=1, money_per_day=1.0), prices={"m": price}))
        reserve(ledger, "r", 1)
        ledger.settle("r", "used", usage, 0.0)
        assert ledger.accounts["a"].scope.days[0].window.used == micros

    def test_a_model_without_a_price_costs_nothing(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=1, money_per_day=1.0)))
        assert ledger.cost(A, Usage(100, 100)).micros == 0

    def test_what_status_says_of_it(self) -> None:
        rules = AccountRules(limits=Limits(concurrency=1, money_per_day=2.5), prices={"m": Price(input=1.0)})
        ledger = ledger_of(rules)
        reserve(ledger, "r", 1, usage=Usage(MICRO, 1))
        plain = ledger.accounts["a"].scope.as_plain(0.0)
        assert plain["windows"] == {"money_per_day": {"limit": 2.5, "used": 1.0, "reserved": 1.0}}
        assert (plain["active"], plain["limit"], plain["effective_limit"], plain["stopped"]) == (1, 1, 1, None)

    def test_where_nothing_counts_tokens_nothing_is_reckoned(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=1, requests_per_minute=5)))
        assert ledger.cost(A, Usage(100, 100)) is NO_COST


class TestReckoning:
    def test_calls_at_once_teach_no_more_than_one_after_another(self) -> None:
        """All of them were reckoned with what was known when they went out."""
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=99, tokens_per_minute=1_000_000)))
        for number in range(50):
            reserve(ledger, f"r{number}", number, usage=Usage(1_000, 10))
        for number in range(50):
            ledger.settle(f"r{number}", "used", Usage(1_500, 10), 1.0)
        assert 1_450 <= ledger.cost(A, Usage(1_000, 10)).usage.prompt <= 1_500

    def test_what_the_worker_says_is_the_estimate_from_then_on(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=9, tokens_per_minute=1_000_000)))
        reserve(ledger, "r", 1, usage=Usage(100, 10))
        ledger.expect("r", Usage(1_000, 10), 0.5)
        ledger.settle("r", "used", Usage(1_000, 10), 1.0)
        assert ledger.cost(A, Usage(1_000, 10)).usage.prompt == 1_000

    def test_only_a_call_that_was_served_teaches(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=9, tokens_per_minute=1_000_000)))
        reserve(ledger, "r", 1, usage=Usage(1_000, 10))
        ledger.settle("r", "doubt", Usage(3_000, 10), 1.0)
        assert ledger.cost(A, Usage(1_000, 10)).usage.prompt == 1_000


class TestTeaching:
    def draw(self) -> float:
        return 0.0

    def test_the_slots_of_a_lesson_about_a_model_come_back(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=9), counting=Counting(concurrency_of="model")))
        for number in range(3):
            reserve(ledger, f"r{number}", number)
        ledger.refuse_concurrency("r2", A, None, "why", now(1.0), self.draw)
        scope = ledger.scope_of_model(A)
        assert scope is not None
        assert scope.concurrency is not None
        assert (scope.concurrency.limit, scope.active) == (2, 3)
        for number in range(3):
            ledger.settle(f"r{number}", "used", None, 2.0)
        assert scope.active == 0

    def test_nothing_is_tried_while_more_is_out_than_the_limit(self) -> None:
        """One that was refused when the others had long been served cuts below what is out."""
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=4)))
        scope = ledger.accounts["a"].scope
        for number in range(4):
            reserve(ledger, f"r{number}", number)
        assert scope.concurrency is not None
        scope.concurrency.refuse(9, [0], 0, 1.0)
        assert scope.concurrency.limit == 1
        for time in (2.0, 100.0):
            assert scope.opens_at(now(time)) == NEVER
        for number in range(3):
            ledger.settle(f"r{number}", "used", None, 100.0)
        assert scope.opens_at(now(101.0)) == 101.0, "now one more"
        assert scope.concurrency.limit == 2

    def test_models_with_lessons_have_a_bound(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=9), counting=Counting(concurrency_of="model")))
        for number in range(MAX_MODELS + 10):
            ledger.teacher(Target("a", f"m{number}"), "concurrency")
        account = ledger.accounts["a"]
        assert len(account.models) == MAX_MODELS
        assert ledger.teacher(Target("a", "new"), "concurrency") is account.scope

    def test_lessons_of_a_call_that_is_over_are_none(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=9)))
        ledger.refuse_concurrency("gone", A, None, "why", now(1.0), self.draw)
        ledger.refuse_rate("gone", A, None, "why", now(1.0), self.draw)
        assert not ledger.stop("gone", "a", Fault(code="c", message="m"), None, now(1.0))
        assert ledger.accounts["a"].scope.history.as_plain() == []

    def test_an_organisations_pause_is_for_both_keys(self) -> None:
        accounts = {name: AccountRules(limits=Limits(concurrency=5), organization="o") for name in "ab"}
        ledger = Ledger(LedgerRules(accounts=accounts, organizations={"o": Limits(tokens_per_minute=100)}))
        reserve(ledger, "r", 1)
        ledger.refuse_rate("r", A, 30.0, "why", now(1.0), self.draw)
        assert ledger.organizations["o"].opens_at(now(2.0)) == 31.0
        assert ledger.resume("b", now(3.0)), "any of its accounts"
        assert ledger.organizations["o"].opens_at(now(3.0)) == 3.0

    def test_resume_forgets_what_was_learned(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=9), counting=Counting(concurrency_of="model")))
        for number in range(3):
            reserve(ledger, f"r{number}", number)
        ledger.refuse_concurrency("r2", A, None, "why", now(1.0), self.draw)
        assert ledger.resume("a", now(2.0))
        scope = ledger.scope_of_model(A)
        assert scope is not None
        assert scope.concurrency is not None
        assert scope.concurrency.limit == 9
        assert not ledger.resume("a", now(3.0))

    @pytest.mark.parametrize(
        ("outcome", "pause"), [("used", USUAL_PAUSE), ("unused", 2 * USUAL_PAUSE), ("failed", 2 * USUAL_PAUSE)]
    )
    def test_a_call_that_was_served_ends_the_doubling(self, outcome: Outcome, pause: float) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=9)))
        scope = ledger.accounts["a"].scope
        reserve(ledger, "r1", 1)
        ledger.refuse_rate("r1", A, None, "why", now(1.0), self.draw)
        ledger.settle("r1", "unused", None, 1.0)
        reserve(ledger, "r2", 2, time=10.0)
        ledger.settle("r2", outcome, None, 11.0)
        reserve(ledger, "r3", 3, time=20.0)
        ledger.refuse_rate("r3", A, None, "why", now(21.0), self.draw)
        assert scope.pause.until == 21.0 + pause

    def test_work_that_is_no_call_of_ours_says_nothing_of_a_pause(self) -> None:
        ledger = ledger_of(AccountRules(limits=Limits(concurrency=9)))
        reserve(ledger, "r1", 1)
        ledger.refuse_rate("r1", A, None, "why", now(1.0), self.draw)
        ledger.settle("r1", "unused", None, 1.0)
        ledger.take_slot("held", 2, "a", "c", now(7.0))
        ledger.settle("held", "used", None, 8.0)
        reserve(ledger, "r3", 3, time=20.0)
        ledger.refuse_rate("r3", A, None, "why", now(21.0), self.draw)
        assert ledger.accounts["a"].scope.pause.until == 21.0 + 2 * USUAL_PAUSE


class TestClients:
    def test_one_whose_call_takes_longer_than_its_minute_is_not_idle(self) -> None:
        ledger = ledger_of(
            AccountRules(limits=Limits(concurrency=1)), clients={"default": ClientRules(requests_per_minute=5)}
        )
        reserve(ledger, "r", 1)
        assert not ledger.clients["c"].is_idle(100.0)
        ledger.settle("r", "used", None, 100.0)
        assert ledger.clients["c"].is_idle(100.0)

    def test_weights(self) -> None:
        ledger = Ledger(LedgerRules(clients={"x": ClientRules(weight=3.0), "default": ClientRules(weight=0.5)}))
        assert [ledger.weight_of(name) for name in ("x", "anybody")] == [3.0, 0.5]
        assert Ledger(LedgerRules()).weight_of("anybody") == 1.0

    def test_only_who_is_limited_has_a_scope(self) -> None:
        ledger = Ledger(LedgerRules(clients={"x": ClientRules(tokens_per_day=5), "y": ClientRules(weight=2.0)}))
        assert ledger.scope_of_client("x") is ledger.scope_of_client("x")
        assert ledger.scope_of_client("y") is None
        assert ledger.scope_of_client("z") is None

    def test_who_has_used_nothing_lately_is_forgotten_and_nobody_else(self) -> None:
        ledger = ledger_of(
            AccountRules(limits=Limits(concurrency=9_999)), clients={"default": ClientRules(tokens_per_day=10)}
        )
        ledger.reserve("r", 1, A, "busy", ledger.cost(A, Usage(2, 2)), 0.0)
        ledger.reserve("s", 2, A, "spent", ledger.cost(A, Usage(2, 2)), 0.0)
        ledger.settle("s", "used", Usage(2, 2), 0.0)
        for number in range(5_000):
            ledger.forget_idle(now(1.0))
            ledger.overdrawn(A, Usage(1, 1), f"client{number}", 1.0, answers=True)
        assert len(ledger.clients) < 500
        assert ledger.clients["busy"].active == 1
        assert ledger.clients["spent"].days[0].window.used == 4
