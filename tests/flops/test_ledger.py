"""The ledger: exact sums, resumption without gap or double count, utilisation only where it is known."""

import json

import pytest

from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.flops.ledger import ZETTA, Ledger
from wamjax.flops.model import COMPONENTS, FlopCount, count_flops
from wamjax.flops.utilisation import Denominator
from wamjax.layout import build_layout

CPU = Denominator(device_kind="cpu", num_devices=8, dtype="float32")
H200 = Denominator(device_kind="NVIDIA H200", num_devices=8, dtype="bfloat16")
TPU7X = Denominator(device_kind="TPU7x", num_devices=8, dtype="bfloat16")


def real_count():
    config = RunConfig()
    return count_flops(config, build_layout(config))


def count_of(model, hardware):
    """A count with all FLOPs in the feed-forward layers."""

    def only(flops):
        return {name: flops if name == "ffn" else 0 for name in COMPONENTS}

    return FlopCount(
        forward=only(model // 3), model=only(model), hardware=only(hardware), hardware_forward=only(hardware // 4),
        tokens={"clean_video": 10, "action": 2}, num_pairs=100, num_executed_pairs=100, num_dense_pairs=144,
        num_parameters=7, num_trained_parameters=7,
    )  # fmt: skip


def ledger(count=None, denominator=CPU, samples=32):
    return Ledger(count=count or real_count(), samples_per_step=samples, denominator=denominator)


def deterministic(record):
    return {key: value for key, value in record.items() if key != "wall"}


def test_record_after_n_steps_holds_n_batches_of_every_count():
    count, book = real_count(), ledger()
    lines = [book.record(step, 1.0 / step, 0.5) for step in range(1, 6)]
    last = lines[-1]
    assert (last["step"], last["samples"], last["loss"]) == (5, 160, 0.2)
    assert last["tokens"] == {stream: 160 * number for stream, number in count.tokens.items()}
    assert last["model_flops"] == {name: 160 * flops for name, flops in count.model.items()}
    assert last["hardware_flops"] == {name: 160 * flops for name, flops in count.hardware.items()}
    assert last["zflops"] == 160 * count.model_total / ZETTA
    assert last["this_step"]["model_flops"] * 5 == sum(last["model_flops"].values())
    assert lines[0]["samples"] == 32, "an earlier record must not change with later ones"


def test_run_killed_and_resumed_equals_the_uninterrupted_run_bit_for_bit():
    whole, first = ledger(), ledger()
    expected = [whole.record(step, 1.0 / step, 0.5) for step in range(1, 8)]
    lines = [first.record(step, 1.0 / step, 0.25) for step in range(1, 4)]
    checkpoint = json.dumps(first.totals)
    for step in (4, 5):  # lost: after the checkpoint, before the kill
        first.record(step, 1.0 / step, 0.25)
    second = ledger()
    second.resume(json.loads(checkpoint))
    lines += [second.record(step, 1.0 / step, 9.0) for step in range(4, 8)]
    assert list(map(deterministic, lines)) == list(map(deterministic, expected))
    assert deterministic(second.totals) == deterministic(whole.totals)
    assert second.totals["wall"]["seconds"] == 3 * 0.25 + 4 * 9.0


@pytest.mark.parametrize("step", [0, 1, 2, 4])
def test_step_that_leaves_a_gap_or_repeats_is_refused(step):
    book = ledger()
    for done in (1, 2):
        book.record(done, 1.0, 0.1)
    with pytest.raises(ValueError, match=f"stands at step 2 and was given step {step}"):
        book.record(step, 1.0, 0.1)
    assert book.record(3, 1.0, 0.1)["samples"] == 96


def test_sums_beyond_64_bits_and_beyond_doubles_stay_exact_through_json():
    book = ledger(count_of(10**24 + 1, 10**24 + 3), samples=1)
    records = [json.loads(json.dumps(book.record(step, 0.0, 1.0))) for step in range(1, 4)]
    assert records[-1]["model_flops"]["ffn"] == 3 * 10**24 + 3
    again = ledger(count_of(10**24 + 1, 10**24 + 3), samples=1)
    again.resume(json.loads(json.dumps(book.totals)))
    assert again.record(4, 0.0, 1.0)["hardware_flops"]["ffn"] == 4 * 10**24 + 12


def test_unknown_device_has_no_utilisation_but_a_reason_and_no_chip_seconds():
    wall = ledger().record(1, 1.0, 2.0)["wall"]
    assert (wall["mfu"], wall["hfu"], wall["mfu_denominator"], wall["chip_seconds"]) == (None, None, None, None)
    assert wall["device_seconds"] == 16.0
    assert "'cpu'" in wall["mfu_reason"]


def test_known_device_has_utilisation_of_model_and_hardware_flops_with_its_denominator():
    # 8 chips x 989.5e12 for 2 s = 15,832e12 FLOPs: an eighth and a quarter of it.
    book = ledger(count_of(1_979 * 10**12 // 8, 3_958 * 10**12 // 8), H200, samples=8)
    wall = book.record(1, 1.0, 2.0)["wall"]
    assert (wall["mfu"], wall["hfu"]) == (0.125, 0.25)
    assert wall["mfu_denominator"] == "989.5e12 FLOP/s x 8 chips, NVIDIA H200, bfloat16 dense"
    assert wall["mfu_reason"] is None
    assert wall["chip_seconds"] == 16.0


def test_tpu7x_devices_are_not_taken_for_chips():
    wall = ledger(denominator=TPU7X).record(1, 1.0, 2.0)["wall"]
    assert (wall["device_seconds"], wall["chip_seconds"]) == (16.0, 8.0)


def test_unmeasured_step_has_no_utilisation_and_says_why():
    wall = ledger(denominator=H200).record(1, 1.0, None)["wall"]
    assert wall["mfu"] is None
    assert wall["mfu_reason"] == "the time of this step was not measured"
    assert wall["seconds"] == 0.0


def test_evaluation_is_counted_apart_from_training():
    count, book = real_count(), ledger()
    before = book.record(1, 1.0, 1.0)
    book.record_evaluation(24)
    after = book.record(2, 1.0, 1.0)
    assert after["evaluation"] == {"samples": 24, "hardware_flops": 24 * sum(count.hardware_forward.values())}
    assert sum(after["model_flops"].values()) == 2 * sum(before["model_flops"].values())


def test_totals_are_a_copy():
    book = ledger()
    book.totals["tokens"]["action"] = 10**9
    assert book.totals["tokens"]["action"] == 0


def test_resume_from_another_configuration_is_refused_naming_the_streams():
    other = ledger(count_of(3, 4))
    with pytest.raises(ConfigError, match=r"counts tokens by \['action', 'clean_video'\]"):
        ledger().resume(other.totals)


def test_resume_from_incomplete_totals_is_refused_naming_the_field():
    totals = ledger().totals
    del totals["samples"]
    with pytest.raises(ConfigError, match="lack 'samples'"):
        ledger().resume(totals)


def test_encoders_that_run_beside_training_are_summed_apart_from_it():
    plain, book = ledger(), ledger()
    book.encoders = {"vae": 7, "text": 10**20}
    lines = [book.record(step, 1.0, 0.1) for step in (1, 2)]
    assert lines[-1]["encoder_flops"] == {"vae": 64 * 7, "text": 64 * 10**20, "image": 0}
    plain.record(1, 1.0, 0.1)
    assert lines[-1]["hardware_flops"] == plain.record(2, 1.0, 0.1)["hardware_flops"]
    book.record_evaluation(3)
    evaluated = sum(real_count().hardware_forward.values()) + 7 + 10**20
    assert lines[-1]["evaluation_flops_per_sample"] == evaluated
    assert book.totals["evaluation"]["hardware_flops"] == 3 * evaluated


def test_checkpoint_from_before_encoders_were_counted_resumes_with_none():
    old, book = ledger().totals, ledger()
    del old["encoder_flops"]
    book.resume(old)
    assert book.record(1, 1.0, 0.1)["encoder_flops"] == {"vae": 0, "text": 0, "image": 0}


class EvenOdd:
    """Every other sample comes from another dataset, ten and four windows large."""

    @property
    def num_windows(self):
        return {"even": 10, "odd": 4}

    def count_samples(self, position):
        return {"even": (position + 1) // 2, "odd": position // 2}


def test_samples_and_epochs_of_each_dataset_continue_over_a_resume():
    whole = Ledger(count=real_count(), samples_per_step=3, denominator=CPU, sources=EvenOdd())
    lines = [whole.record(step, 1.0, 0.5) for step in range(1, 6)]
    assert lines[2]["sources"] == {"even": 5, "odd": 4}
    assert lines[2]["epochs"] == {"even": 0.5, "odd": 1.0}
    first = Ledger(count=real_count(), samples_per_step=3, denominator=CPU, sources=EvenOdd())
    for step in range(1, 4):
        first.record(step, 1.0, 0.5)
    resumed = Ledger(count=real_count(), samples_per_step=3, denominator=CPU, sources=EvenOdd())
    resumed.resume(json.loads(json.dumps(first.totals)))
    assert [resumed.record(step, 1.0, 0.5) for step in (4, 5)] == lines[3:]


def test_run_that_goes_on_with_another_mixture_keeps_what_it_has_read():
    class Only:
        @property
        def num_windows(self):
            return {"new": 6}

        def count_samples(self, position):
            return {"new": position}

    first = Ledger(count=real_count(), samples_per_step=4, denominator=CPU, sources=EvenOdd())
    first.record(1, 1.0, 0.5)
    resumed = Ledger(count=real_count(), samples_per_step=4, denominator=CPU, sources=Only())
    resumed.resume(first.totals)
    line = resumed.record(2, 1.0, 0.5)
    assert line["sources"] == {"even": 2, "odd": 2, "new": 4}
    assert line["epochs"] == {"new": 4 / 6}


def test_totals_from_before_datasets_were_counted_are_taken_up():
    first = ledger(samples=4)
    first.record(1, 1.0, 0.5)
    totals = {key: value for key, value in first.totals.items() if key != "sources"}
    resumed = Ledger(count=real_count(), samples_per_step=4, denominator=CPU, sources=EvenOdd())
    resumed.resume(totals)
    assert resumed.record(2, 1.0, 0.5)["sources"] == {"even": 4, "odd": 4}
