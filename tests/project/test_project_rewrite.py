"""Changes to the order of works."""

import pytest

from paceline.project.app import Template, Work
from paceline.project.rewrite import ancestors, batched, deferred, parallel, routed, used_steps, without


def chain(*steps: str, uses: dict[int, set[int]] | None = None) -> list[Work]:
    """Works one after the other; `uses` by position."""
    needs = uses or {}
    return [
        Work(
            step=step,
            names=frozenset((step, f"around_{step[0]}")),
            after=(i - 1,) if i else (),
            uses=frozenset(needs.get(i, ())),
            model="m",
            output_tokens=10,
        )
        for i, step in enumerate(steps)
    ]


def waits(works: list[Work]) -> dict[str, set[str]]:
    """Each step with everything it waits for."""
    return {w.step: {works[j].step for j in a} for w, a in zip(works, ancestors(works), strict=True)}


def test_parallel_steps_start_together_and_the_next_waits_for_all() -> None:
    """Two of four steps in a row become branches."""
    found = waits(parallel(chain("a", "b", "c", "d"), [["b"], ["c"]], set()))
    assert found == {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"a", "b", "c"}}


def test_a_branch_keeps_its_own_order() -> None:
    """`classify > tone` beside retrieval: tone waits for classify, not for retrieval."""
    works = chain("classify", "embed", "search", "tone", "write")
    found = waits(parallel(works, [["embed", "search"], ["classify", "tone"]], set()))
    assert found["embed"] == set()
    assert found["search"] == {"embed"}
    assert found["tone"] == {"classify"}
    assert found["write"] == {"classify", "embed", "search", "tone"}


def test_a_name_around_several_steps_is_a_branch() -> None:
    """A function that makes two calls is named once."""
    works = chain("rembed", "rsearch", "tone")
    found = waits(parallel(works, [["around_r"], ["tone"]], set()))
    assert found == {"rembed": set(), "rsearch": {"rembed"}, "tone": set()}


def test_a_parallel_step_still_waits_for_what_it_uses() -> None:
    """Its input holds the other's output, in this request or seen in others."""
    own = waits(parallel(chain("a", "b", uses={1: {0}}), [["a"], ["b"]], set()))
    seen = waits(parallel(chain("a", "b"), [["a"], ["b"]], {("b", "a")}))
    assert own["b"] == seen["b"] == {"a"}


def test_a_single_step_runs_its_own_calls_together() -> None:
    """A loop over one step becomes a fan-out."""
    found = parallel(chain("a", "a", "a", "end"), [["a"]], set())
    assert [w.after for w in found] == [(), (), (), (0, 1, 2)]


def test_removing_repeats_keeps_the_first() -> None:
    """What waited for the repeat waits for what it waited for."""
    found = without(chain("a", "b", "a", "c"), "a", keep_first=True)
    assert [w.step for w in found] == ["a", "b", "c"]
    assert found[2].after == (1,)


def test_uses_of_removed_works_are_forgotten() -> None:
    """Positions stay right when works go."""
    found = without(chain("a", "b", "c", uses={2: {0, 1}}), "a")
    assert found[1].uses == frozenset({0})


def test_deferred_works_start_after_the_answer_in_their_order() -> None:
    """Nobody waits for them."""
    found = deferred(chain("a", "check", "check", "b"), "check")
    assert [w.after for w in found] == [(), (), (1,), (0,)]
    assert [w.awaited for w in found] == [True, False, False, True]
    assert found[1].after_answer


def test_a_batch_is_one_call_with_all_tokens() -> None:
    """Five calls by two are three; what followed waits for the last."""
    found = batched(chain("a", "a", "a", "a", "a", "b"), "a", 2)
    assert [(w.step, w.output_tokens) for w in found] == [("a", 20), ("a", 20), ("a", 10), ("b", 10)]
    assert waits(found)["b"] == {"a"}


def test_only_model_calls_are_routed() -> None:
    """A database call of the same step stays."""
    works = [*chain("a"), Work(step="a", names=frozenset({"a"}), after=(0,))]
    assert [w.model for w in routed(works, "a", "mini")] == ["mini", None]


@pytest.mark.parametrize("share", [0.05, 0.5], ids=["chance", "habit"])
def test_a_use_is_a_habit_seen_in_a_tenth_of_the_requests(share: float) -> None:
    """One request whose texts happen to overlap is not a dependency."""
    with_use, without_use = chain("a", "b", uses={1: {0}}), chain("a", "b")
    n = round(100 * share)
    templates = [
        Template(key=str(i), text_key=str(i), works=tuple(works), tail_cpu_s=0.0, tail_delay_s=0.0, ok=True)
        for i, works in enumerate([with_use] * n + [without_use] * (100 - n))
    ]
    assert used_steps(templates) == ({("b", "a")} if share > 0.1 else set())
