"""Where a run's time went: undisturbed, killed and resumed, preempted with a checkpoint, never begun."""

import pytest

from wamjax.flops.goodput import BUCKETS, tally_goodput


def startup(step, seconds, unix_s):
    return {"event": "startup", "step": step, "seconds": seconds, "unix_s": unix_s}


def steps(step, num_steps, seconds, unix_s, *, wait_s=0.0, is_first=False):
    return {
        "event": "steps", "step": step, "num_steps": num_steps, "seconds": seconds, "data_wait_s": wait_s,
        "is_first": is_first, "unix_s": unix_s,
    }  # fmt: skip


def pause(bucket, step, seconds, unix_s):
    return {"event": bucket, "step": step, "seconds": seconds, "unix_s": unix_s}


def end(step, unix_s, *, is_complete):
    return {"event": "end", "step": step, "is_complete": is_complete, "unix_s": unix_s}


WHOLE = [
    startup(0, 5.0, 105.0),
    steps(1, 1, 9.0, 114.0, is_first=True),
    steps(3, 2, 4.0, 118.0, wait_s=1.0),
    pause("evaluation", 3, 3.0, 121.0),
    pause("checkpoint_save", 3, 0.5, 121.5),
    end(3, 121.5, is_complete=True),
]


def seconds(**named):
    return {**dict.fromkeys(BUCKETS, 0.0), **named}


def test_undisturbed_run_is_its_events_with_compilation_taken_out_of_the_first_step():
    tally = tally_goodput(WHOLE)
    assert tally.buckets == seconds(
        startup=5.0, compile=7.0, step=2.0 + 3.0, data_wait=1.0, evaluation=3.0, checkpoint_save=0.5
    )
    assert (tally.starts, tally.is_complete, tally.elapsed_s) == (1, True, 21.5)
    assert tally.goodput == pytest.approx(5.0 / 21.5)


def test_killed_run_loses_the_steps_beyond_its_checkpoint_and_the_time_until_it_is_started_again():
    events = [
        *WHOLE[:-1],
        steps(6, 3, 6.0, 127.5, wait_s=0.5),  # beyond the checkpoint of step 3; then killed
        startup(3, 4.0, 141.5),
        steps(4, 1, 8.0, 149.5, is_first=True),
        steps(6, 2, 4.0, 153.5),
        end(6, 153.5, is_complete=True),
    ]
    usual = 2.0
    assert tally_goodput(events).buckets == pytest.approx(
        seconds(
            startup=9.0,
            compile=9.0 + 8.0 - 2 * usual,
            step=2 * usual + 3.0 + 4.0,
            data_wait=1.0,
            evaluation=3.0,
            checkpoint_save=0.5,
            lost_steps=6.0,
            down=10.0,
        )
    )


def test_time_elapsed_is_the_clocks():
    events = [*WHOLE[:-1], end(3, 121.5, is_complete=False), startup(3, 2.0, 150.0), end(3, 150.0, is_complete=False)]
    tally = tally_goodput(events)
    assert tally.elapsed_s == pytest.approx(150.0 - 100.0)
    assert tally.occupied_s == pytest.approx(50.0 - 26.5)
    assert tally.buckets["down"] == 26.5


def test_complete_run_that_is_made_longer_later_was_not_down():
    assert tally_goodput([*WHOLE, startup(3, 2.0, 9_000.0)]).buckets["down"] == 0.0


def test_line_across_the_step_a_run_resumes_from_is_lost_in_part():
    events = [startup(0, 0.0, 0.0), steps(10, 10, 20.0, 20.0), startup(4, 0.0, 20.0)]
    tally = tally_goodput(events)
    assert (tally.buckets["step"], tally.buckets["lost_steps"]) == (pytest.approx(8.0), pytest.approx(12.0))


def test_run_that_starts_over_loses_everything():
    tally = tally_goodput([*WHOLE[:3], startup(0, 1.0, 130.0)])
    assert tally.buckets["step"] == 0.0
    assert tally.buckets["lost_steps"] == pytest.approx(2.0 + 4.0)
    assert (tally.starts, tally.is_complete) == (2, False)


def test_one_pause_of_the_machine_does_not_pass_for_an_ordinary_step():
    tally = tally_goodput([*WHOLE[:3], steps(4, 1, 200.0, 318.0), steps(5, 1, 2.0, 320.0)])
    assert tally.buckets["compile"] == 7.0


def test_single_step_has_no_usual_time_and_counts_as_compilation():
    tally = tally_goodput(WHOLE[:2])
    assert (tally.buckets["compile"], tally.buckets["step"]) == (9.0, 0.0)


def test_nothing_recorded_has_no_goodput():
    tally = tally_goodput([])
    assert (tally.goodput, tally.elapsed_s, tally.starts) == (None, 0.0, 0)
