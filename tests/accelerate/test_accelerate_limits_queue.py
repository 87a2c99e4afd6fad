"""The queue: fair between tenants, priorities that age, and no more memory than what waits."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from paceline.accelerate.limits.ask import Ask
from paceline.accelerate.limits.queue import Queue, Waiter


def waiter(
    tenant: bytes, name: int, *, cost: float = 1.0, at_s: float = 0.0, priority: int = 0, deadline_s: float = 1e9
) -> Waiter[int]:
    ask = Ask(tenant=tenant, key=b"k", model="m", tokens=int(cost), priority=priority)
    return Waiter(ask, cost, at_s, deadline_s, name)


def drain(queue: Queue[int], at_s: float = 0.0) -> list[int]:
    """The order everybody is served in."""
    served = []
    while (first := queue.first(at_s)) is not None:
        queue.pop(first)
        served.append(first.turn)
    return served


def test_a_flood_of_one_tenant_delays_another_by_one_call() -> None:
    """A hundred wait; a newcomer of another tenant is served second, its next ones in turn."""
    queue: Queue[int] = Queue(age_s=5.0)
    for name in range(100):
        queue.push(waiter(b"flood", name))
    first = queue.first(0.0)
    assert first is not None
    queue.pop(first)
    for name in (1000, 1001, 1002):
        queue.push(waiter(b"quiet", name))
    order = drain(queue)
    assert [order.index(name) for name in (1000, 1001, 1002)] == [0, 2, 4]


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(1, 50)), min_size=2, max_size=60),
    st.integers(0, 59),
)
def test_tenants_that_wait_get_equal_shares(calls: list[tuple[bytes, int]], until: int) -> None:
    """While two tenants both have calls waiting, what they got differs by at most one call of each, in cost."""
    queue: Queue[int] = Queue(age_s=5.0)
    costs = {}
    left: dict[bytes, int] = {}
    for name, (tenant, cost) in enumerate(calls):
        queue.push(waiter(tenant, name, cost=cost))
        costs[name] = (tenant, cost)
        left[tenant] = left.get(tenant, 0) + 1
    got = dict.fromkeys(left, 0)
    largest = max(cost for _, cost in calls)
    for _ in range(min(until, len(calls))):
        first = queue.first(0.0)
        assert first is not None
        queue.pop(first)
        tenant, cost = costs[first.turn]
        got[tenant] += cost
        left[tenant] -= 1
        waiting = [name for name, count in left.items() if count]
        for one, other in itertools.combinations(waiting, 2):
            assert abs(got[one] - got[other]) <= 2 * largest


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.integers(1, 9)), max_size=40))
def test_within_a_tenant_first_in_is_first_out(calls: list[tuple[bytes, int]]) -> None:
    """Whatever the costs; and everybody is served exactly once."""
    queue: Queue[int] = Queue(age_s=5.0)
    for name, (tenant, cost) in enumerate(calls):
        queue.push(waiter(tenant, name, cost=cost))
    order = drain(queue)
    assert sorted(order) == list(range(len(calls)))
    for tenant in (b"a", b"b"):
        own = [name for name in order if calls[name][0] == tenant]
        assert own == sorted(own)
    assert (len(queue), queue.cost, queue.tokens) == (0, 0.0, 0)


def test_higher_priorities_go_first_and_waiting_lifts_the_others() -> None:
    """After five seconds a call of priority 0 counts as 1, and is no longer passed by new ones."""
    queue: Queue[int] = Queue(age_s=5.0)
    queue.push(waiter(b"t", 0, at_s=0.0))
    queue.push(waiter(b"t", 1, at_s=0.0, priority=1))
    first = queue.first(1.0)
    assert first is not None
    assert first.turn == 1
    queue.pop(first)
    queue.push(waiter(b"t", 2, at_s=4.9, priority=1))
    assert queue.first(5.0) is not None
    queue.push(waiter(b"t", 3, at_s=5.1, priority=1))
    assert drain(queue, 5.2) == [2, 0, 3]


@given(st.integers(1, 3), st.integers(-8, 7))
def test_nobody_starves_while_higher_priorities_keep_coming(above: int, own: int) -> None:
    """One call a second is served, one of a higher priority comes a second: the low one is served all the same."""
    queue: Queue[int] = Queue(age_s=5.0)
    queue.push(waiter(b"low", -1, priority=own))
    for second in range(200):
        queue.push(waiter(b"high", second, at_s=second, priority=own + above))
        first = queue.first(float(second))
        assert first is not None
        queue.pop(first)
        if first.turn == -1:
            assert second <= 5 * above + 2
            return
    raise AssertionError("it starved")


def test_those_admitted_before_go_first_in_their_old_order() -> None:
    """Whatever their priority."""
    queue: Queue[int] = Queue(age_s=5.0)
    queue.push(waiter(b"t", 0, priority=8))
    for ticket in (7, 3, 5):
        returned = waiter(b"u", ticket)
        returned.ask.ticket = ticket
        queue.push(Waiter(returned.ask, 1.0, 0.0, 1e9, ticket))
    assert drain(queue) == [3, 5, 7, 0]


@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "pop", "discard", "expire"]), st.integers(0, 3), st.integers(-1, 1)),
        max_size=200,
    )
)
def test_any_order_of_steps_leaves_the_sums_right(steps: list[tuple[str, int, int]]) -> None:
    """Pushes, turns, cancellations, deadlines and ageing: size, cost and tokens are those of who still waits."""
    queue: Queue[int] = Queue(age_s=3.0)
    inside: dict[int, Waiter[int]] = {}
    for now, (step, who, priority) in enumerate(steps):
        if step == "push":
            one = waiter(b"%d" % who, now, cost=who + 1, at_s=now, priority=priority, deadline_s=now + 5 * (who + 1))
            inside[now] = one
            queue.push(one)
        elif step == "pop" and (first := queue.first(float(now))) is not None:
            queue.pop(first)
            del inside[first.turn]
        elif step == "discard" and inside:
            name = sorted(inside)[who % len(inside)]
            queue.discard(inside.pop(name))
        elif step == "expire":
            for late in queue.expired(float(now)):
                assert late.deadline_s <= now
                del inside[late.turn]
        assert len(queue) == len(inside)
        assert abs(queue.cost - sum(one.cost for one in inside.values())) < 1e-6
    assert sorted(drain(queue, 1e6)) == sorted(inside)


def test_those_who_give_up_take_no_memory() -> None:
    """A stalled gate where a hundred thousand callers come and give up holds what ten waiters need."""
    queue: Queue[int] = Queue(age_s=5.0)
    stuck = [waiter(b"s%d" % i, i) for i in range(10)]
    for one in stuck:
        queue.push(one)
    for name in range(20_000):
        passing = waiter(b"t%d" % (name % 7), name, at_s=name, deadline_s=name + 1, priority=name % 3)
        queue.push(passing)
        queue.discard(passing)
    assert len(queue) == 10
    held = len(queue._deadlines) + sum(
        len(group._by_age) + sum(len(flow.waiters) for flow in group._flows.values())
        for group in queue._classes.values()
    )
    assert held < 2_000


def test_the_estimate_of_what_is_ahead_counts_a_fair_share() -> None:
    """Of a flood of a hundred one call is ahead of a newcomer; of its own ten, all."""
    queue: Queue[int] = Queue(age_s=5.0)
    for name in range(100):
        queue.push(waiter(b"flood", name))
    newcomer = Ask(tenant=b"quiet", key=b"k", model="m")
    assert queue.ahead(newcomer, 1.0) == 1.0
    for name in range(10):
        queue.push(waiter(b"quiet", name))
    assert queue.ahead(newcomer, 1.0) == 21.0
    assert queue.ahead(Ask(tenant=b"x", key=b"k", model="m", priority=1), 1.0) == 0.0
    assert queue.ahead(Ask(tenant=b"x", key=b"k", model="m", priority=-1), 1.0) == 110.0
