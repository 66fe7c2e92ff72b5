"""Interleaved measurements, on a clock that the test sets."""

import time

import pytest

from goldfinch.benchmark.timing import Timings, interleave, seconds


@pytest.fixture
def clock(monkeypatch):
    """clock.advance(seconds) is the only way in which time passes."""

    class Clock:
        now = 1000.0

        def advance(self, taken: float) -> None:
            self.now += taken

    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def work(clock, *durations):
    """A case that takes these times, one after the other."""
    left = iter(durations)
    return lambda: seconds(lambda: clock.advance(next(left)))


def test_a_call_takes_what_passes_on_the_clock(clock):
    assert seconds(lambda: clock.advance(0.25)) == 0.25
    assert seconds(lambda: None) == 0


def test_a_slow_warm_up_changes_no_result(clock):
    taken = interleave({"compiles first": work(clock, 60, 1, 1, 1), "does not": work(clock, 2, 2, 2, 2)}, repeats=3)
    assert taken["compiles first"].seconds == [1, 1, 1]
    assert taken["compiles first"].times_faster(taken["does not"]) == 2


def test_load_that_comes_and_goes_changes_no_ratio(clock):
    """Both cases of a repeat meet the same load; medians over all repeats would compare different loads."""
    load = [1, 1, 8, 3, 1, 5, 2]
    cases = {"ours": work(clock, *load), "theirs": work(clock, *(4 * each for each in load))}
    taken = interleave(cases, repeats=len(load) - 1)
    assert taken["ours"].times_faster(taken["theirs"]) == 4
    assert taken["theirs"].times_faster(taken["ours"]) == 0.25


def test_one_disturbed_repeat_changes_no_median(clock):
    taken = interleave({"a": work(clock, 1, 1, 100, 1), "b": work(clock, 2, 2, 2, 2)}, repeats=3)
    assert taken["a"].median == 1
    assert taken["a"].times_faster(taken["b"]) == 2


def test_without_repeats_the_warm_up_is_the_measurement(clock):
    taken = interleave({"once": work(clock, 3)}, repeats=0)
    assert (taken["once"].seconds, taken["once"].median) == ([3], 3)


def test_a_case_is_left_out_from_the_repeat_in_which_it_became_too_slow(clock):
    taken = interleave({"slower": work(clock, 1, 2, 9), "fast": work(clock, 1, 1, 1, 1, 1)}, repeats=4, patience=5)
    assert taken["slower"].seconds == [2, 9]
    assert taken["fast"].seconds == [1] * 4
    assert taken["fast"].times_faster(taken["slower"]) == 5.5  # over the two repeats of both


def test_a_case_measured_once_is_compared_in_the_warm_up_of_both(clock):
    taken = interleave({"slow": work(clock, 30), "fast": work(clock, 3, 1, 1)}, repeats=2, patience=5)
    assert taken["fast"].times_faster(taken["slow"]) == 10


def test_a_failing_case_is_not_hidden(clock):
    def fail():
        raise RuntimeError("logits are not finite")

    with pytest.raises(RuntimeError, match="not finite"):
        interleave({"fine": work(clock, 1, 1), "fails": fail}, repeats=1)


def test_repeats_that_count_are_all_but_the_warm_up():
    assert Timings(by_repeat={0: 5.0, 2: 1.0, 1: 2.0}).seconds == [2.0, 1.0]
    assert Timings(by_repeat={0: 5.0}).seconds == [5.0]
