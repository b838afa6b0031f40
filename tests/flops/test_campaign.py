"""A campaign's sums are exact, lost work is counted, and what is missing is said."""

import pytest

from wamjax.errors import DataError
from wamjax.flops.campaign import Validations, account_precompute, account_training, is_precompute, total_account
from wamjax.flops.goodput import BUCKETS, GoodputTally
from wamjax.flops.ledger import Ledger
from wamjax.flops.model import COMPONENTS, FlopCount
from wamjax.flops.precompute import PrecomputeLedger
from wamjax.flops.utilisation import Denominator

V5P = Denominator(device_kind="TPU v5", num_devices=4, dtype="bfloat16")
H200 = Denominator(device_kind="NVIDIA H200", num_devices=8, dtype="bfloat16")
HUGE = 10**23 + 1  # beyond what a double holds exactly


def only(flops):
    return {name: flops if name == "ffn" else 0 for name in COMPONENTS}


def book(denominator=V5P, model=HUGE, encoders=None):
    count = FlopCount(
        forward=only(model), model=only(model), hardware=only(model + 2), hardware_forward=only(5),
        tokens={"noisy_video": 10, "action": 2}, num_pairs=1, num_executed_pairs=1, num_dense_pairs=1, num_parameters=1,
        num_trained_parameters=1,
    )  # fmt: skip
    return Ledger(count=count, samples_per_step=3, denominator=denominator, encoders=encoders or {})


def lines(ledger, first, last, step_s=2.0):
    return [ledger.record(step, 1.0, step_s) for step in range(first, last + 1)]


def tally(**seconds):
    return GoodputTally(buckets={**dict.fromkeys(BUCKETS, 0.0), **seconds}, starts=1, is_complete=True)


def test_run_costs_what_its_last_line_says():
    account = account_training("a", lines(book(), 1, 5), time=tally(), num_steps=5)
    assert (account.status, account.steps, account.samples) == ("complete", 5, 15)
    assert (account.model_total, account.hardware_total) == (15 * HUGE, 15 * (HUGE + 2))
    assert account.tokens == {"noisy_video": 150, "action": 30}
    assert account.device_s == {"TPU v5": 5 * 2.0 * 4}
    assert account.notes == ()


def test_run_killed_and_resumed_costs_one_that_was_not_plus_what_it_lost():
    first = book(encoders={"vae": 10})
    kept = lines(first, 1, 4)
    checkpoint = first.totals
    lost = lines(first, 5, 7)
    second = book(H200, encoders={"vae": 10})
    second.resume(checkpoint)
    account = account_training("a", kept + lines(second, 5, 9, step_s=1.0), lost=lost, time=tally(), num_steps=10)
    whole = account_training("b", lines(book(encoders={"vae": 10}), 1, 9), time=tally(), num_steps=10)
    assert account.status == "step 9 of 10"
    assert (account.model_flops, account.hardware_flops) == (whole.model_flops, whole.hardware_flops)
    assert account.encoder_flops == {"vae": 270, "text": 0, "image": 0}
    assert (account.lost_steps, account.lost_model_flops) == (3, 9 * HUGE)
    assert account.lost_hardware_flops == 9 * (HUGE + 2) + 9 * 10
    assert account.executed_total == whole.executed_total + account.lost_hardware_flops
    # Before the kill on 4 v5p, after it on 8 H200.
    assert account.device_s == {"TPU v5": 7 * 2.0 * 4, "NVIDIA H200": 5 * 1.0 * 8}


def test_validations_count_wherever_they_stand():
    ledger = book()
    records = lines(ledger, 1, 2)
    ledger.record_evaluation(6)  # after step 2: in the line of step 3
    records += lines(ledger, 3, 4)
    validations = Validations(steps=(2, 4), num_lost=3, samples=6)  # after step 4: in no line
    account = account_training("a", records, validations=validations, time=tally())
    assert account.evaluation_flops == 2 * 6 * 5
    assert account.lost_hardware_flops == 3 * 6 * 5


def test_ledger_that_does_not_tell_what_a_validation_costs_says_so():
    records = [{**line} for line in lines(book(), 1, 2)]
    for record in records:
        del record["evaluation_flops_per_sample"]
    account = account_training("a", records, validations=Validations(steps=(2,), samples=6), time=tally())
    assert account.evaluation_flops == 0
    assert "1 validations are not counted" in account.notes[0]


def test_time_beside_steps_is_device_time_but_for_what_was_down():
    account = account_training(
        "a",
        lines(book(), 1, 1),
        time=tally(startup=3.0, checkpoint_save=1.0, evaluation=2.0, down=100.0, lost_steps=9.0),
    )
    assert account.device_s == {"TPU v5": 4 * (2.0 + 6.0)}


def test_time_that_was_not_recorded_is_said_to_be_missing():
    assert "goodput.jsonl" in account_training("a", lines(book(), 1, 1)).notes[0]


def test_run_that_never_made_a_step_and_one_that_kept_none_are_accounted():
    nothing = account_training("a", [])
    assert (nothing.status, nothing.executed_total, nothing.device_s) == ("ended before its first step", 0, {})
    all_lost = account_training("a", [], lost=lines(book(), 1, 2), num_steps=5)
    assert (all_lost.status, all_lost.steps, all_lost.lost_steps) == ("step 0 of 5", 0, 2)
    assert all_lost.executed_total == 6 * (HUGE + 2)


def precompute(runs=3):
    job = PrecomputeLedger(job="latents", flops_per_run={"vae": HUGE, "text": 7}, denominator=H200)
    return [job.record(samples=4, runs={"vae": 4, "text": 1}, seconds=0.5) for _ in range(runs)]


def test_precompute_job_costs_the_encoders_runs():
    records = precompute()
    assert is_precompute(records)
    assert not is_precompute(lines(book(), 1, 1))
    account = account_precompute("cache", records)
    assert account.encoder_flops == {"vae": 12 * HUGE, "text": 21, "image": 0}
    assert (account.samples, account.executed_total) == (12, 12 * HUGE + 21)
    assert account.device_s == {"NVIDIA H200": 1.5 * 8}


def test_campaign_is_the_exact_sum_of_its_ledgers():
    parts = [
        account_training("a", lines(book(), 1, 5), time=tally()),
        account_training("b", lines(book(H200, model=3), 1, 2), lost=lines(book(model=3), 1, 1), time=tally()),
        account_precompute("c", precompute()),
    ]
    total = total_account(parts)
    assert total.model_total == 15 * HUGE + 6 * 3
    assert total.executed_total == sum(part.executed_total for part in parts)
    assert total.executed_total == 15 * (HUGE + 2) + 6 * 5 + 3 * 5 + 12 * HUGE + 21
    assert total.device_s == {"TPU v5": 40.0 + 8.0, "NVIDIA H200": 2 * 2.0 * 8 + 12.0}
    assert set(total.model_flops) == set(COMPONENTS)


def test_line_of_another_kind_of_log_is_refused_by_folder():
    with pytest.raises(DataError, match="runs/x: a ledger record is not one of a training run"):
        account_training("runs/x", [{"step": 1, "loss/total": 0.5}])
    with pytest.raises(DataError, match="runs/x: a ledger record is not one of a precompute job"):
        account_precompute("runs/x", [{"step": 1, "kind": "precompute"}])
