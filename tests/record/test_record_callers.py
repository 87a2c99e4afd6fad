"""The rule that tells a step from a shared wrapper."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from paceline.trace.callers import WrapperRule, step_frame, wrappers_in

CLASSIFY = ("a.py:5 call_model", "a.py:20 classify", "a.py:40 chat")
ANSWER = ("a.py:5 call_model", "a.py:30 answer", "a.py:41 chat")


def names(chains: Sequence[tuple[str, tuple[str, ...]]]) -> list[str | None]:
    wrappers = wrappers_in(chains)
    return [step_frame(chain, wrappers) for _, chain in chains]


def test_a_function_that_two_steps_of_one_request_call_is_a_wrapper() -> None:
    assert names([("t", CLASSIFY), ("t", ANSWER)]) == ["a.py:20 classify", "a.py:30 answer"]


def test_a_step_used_by_two_endpoints_stays_a_step() -> None:
    batch = (CLASSIFY[0], CLASSIFY[1], "a.py:60 batch")
    wrappers = wrappers_in([("t", CLASSIFY), ("t", ANSWER), ("u", batch)])
    assert wrappers == {"a.py call_model"}


def test_a_wrapper_behind_a_wrapper_is_found() -> None:
    chains = [
        ("t", ("a.py:5 call_model", "retry.py:9 inner", f"a.py:{line} {step}", "a.py:40 chat"))
        for line, step in ((20, "classify"), (30, "answer"), (35, "validate"))
    ]
    assert names(chains) == ["a.py:20 classify", "a.py:30 answer", "a.py:35 validate"]


def test_recursion_is_no_second_caller() -> None:
    walk = ("a.py:7 walk", "a.py:8 walk", "a.py:9 plan")
    assert names([("t", walk), ("t", walk[1:])]) == ["a.py:7 walk", "a.py:8 walk"]


def test_a_direct_call_has_no_frames_and_no_name() -> None:
    assert step_frame((), set()) is None


def test_when_every_frame_is_shared_the_outermost_names_the_call() -> None:
    assert step_frame(CLASSIFY, {"a.py call_model", "a.py classify", "a.py chat"}) == "a.py:40 chat"


frames = st.sampled_from([f"m.py:{line} f{line}" for line in range(6)])
chains = st.lists(st.tuples(st.sampled_from("tu"), st.lists(frames, max_size=4).map(tuple)), max_size=8)


@given(chains)
def test_learning_call_by_call_finds_nothing_the_whole_run_would_not(pairs: list[tuple[str, tuple[str, ...]]]) -> None:
    rule, edges = WrapperRule(), {"t": dict[str, str](), "u": dict[str, str]()}
    for trace, chain in pairs:
        rule.learn(chain, edges[trace])
    assert rule.wrappers <= wrappers_in(pairs)
    for _, chain in pairs:
        assert rule.step_frame(chain) == step_frame(chain, rule.wrappers)
