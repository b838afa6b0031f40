"""What a step reads: counted by hand for a clip, a robot window and a model on pixels."""

import dataclasses
import json
import math

import pytest

from tests.tiny import TINY
from wamjax.config.backbone import ActionsConfig, ClipConfig
from wamjax.config.presets import WAN_2_1_I2V_14B, WAN_2_1_T2V_1_3B
from wamjax.config.schema import LayoutConfig, RunConfig, TrainConfig
from wamjax.errors import ConfigError
from wamjax.planning.assumption import Assumption
from wamjax.planning.feed import FeedAssumptions, plan_feed


def stated(value):
    return Assumption(name="stated", value=value, unit="", source="test")


ROUND = FeedAssumptions(
    video_hz=stated(16.0),
    robot_hz=stated(5.0),
    stored_video_hz=stated(32.0),
    stored_robot_hz=stated(15.0),
    encoded_bits_per_pixel=stated(0.5),
    decoded_pixels_per_core_s=stated(1e6),
    host_cores=stated(8.0),
    cached_bytes_per_value=stated(2.0),
)
VIDEO = RunConfig(
    backbone=WAN_2_1_T2V_1_3B,
    clip=ClipConfig(num_frames=81, height=480, width=832),
    layout=LayoutConfig(formulation="video"),
    train=TrainConfig(num_steps=10, global_batch_size=16),
)
ROBOT = RunConfig(
    backbone=WAN_2_1_I2V_14B,
    clip=ClipConfig(num_frames=33, height=352, width=640),
    actions=ActionsConfig(modules="category"),
    train=TrainConfig(num_steps=10, global_batch_size=128),
)


def test_clips_of_video_pretraining_counted_by_hand():
    feed = plan_feed(VIDEO, step_s=4.0, num_hosts=2, assumptions=ROUND)
    # Each host delivers 8 clips in 4 s; stored videos have twice the frames that clips take.
    assert (feed.frames_per_step, feed.frames_per_s, feed.decoded_frames_per_s) == (1_296, 162.0, 324.0)
    assert feed.pixel_bytes_per_s == 162 * 480 * 832 * 3
    assert feed.encoded_bytes_per_s == 324 * 480 * 832 * 0.5 / 8
    assert feed.decode_cores == pytest.approx(324 * 480 * 832 / 1e6)
    assert feed.decode_step_s == pytest.approx(4.0 * feed.decode_cores / 8)
    # 16 channels of 21 x 60 x 104 latents and 512 x 4,096 values of the prompt, in two bytes.
    assert feed.latent_bytes_per_sample == 2 * (16 * 21 * 60 * 104 + 512 * 4096)
    assert feed.latent_bytes_per_s == 2 * feed.latent_bytes_per_sample
    assert feed.latent_storage_bytes == 160 * feed.latent_bytes_per_sample
    assert feed.encoded_storage_bytes == 160 * 162 * 480 * 832 // 16


def test_windows_of_a_robot_backbone_are_decoded_from_their_dataset_and_cache_their_condition():
    feed = plan_feed(ROBOT, step_s=1.0, num_hosts=16, assumptions=ROUND)
    assert feed.decoded_frames_per_s == pytest.approx(8 * 33 * 3)
    assert feed.latent_bytes_per_sample == 2 * (36 * 9 * 44 * 80 + 512 * 4096 + 257 * 1280)


def test_model_on_pixels_reads_its_canvas_and_has_no_latents():
    feed = plan_feed(TINY, step_s=0.5, num_hosts=1, assumptions=ROUND)
    # 5 frames, 2 dataset steps apart.
    assert (feed.num_frames, feed.frame_height, feed.frame_width) == (5, 16, 24)
    assert feed.frames_per_s == 8 * 5 / 0.5
    assert feed.decoded_frames_per_s == 2 * feed.frames_per_s
    assert (feed.latent_bytes_per_sample, feed.latent_bytes_per_s, feed.latent_storage_bytes) == (None, None, None)


def test_clips_at_the_rate_they_are_stored_at_decode_no_frame_in_vain():
    assert plan_feed(VIDEO, step_s=4.0, num_hosts=2, clip_hz=32.0, assumptions=ROUND).decoded_frames_per_s == 162.0
    assert plan_feed(VIDEO, step_s=4.0, num_hosts=2, clip_hz=64.0, assumptions=ROUND).decoded_frames_per_s == 162.0


def test_run_length_may_differ_from_the_configuration():
    once = plan_feed(VIDEO, step_s=1.0, num_hosts=1, num_steps=1)
    assert plan_feed(VIDEO, step_s=1.0, num_hosts=1, num_steps=7).encoded_storage_bytes == pytest.approx(
        7 * once.encoded_storage_bytes, rel=1e-9
    )


def test_feed_is_json_with_the_source_of_every_assumption():
    values = json.loads(json.dumps(plan_feed(ROBOT, step_s=1.0, num_hosts=2).to_json()))
    assert "DROID" in values["assumptions"]["stored_robot_hz"]["source"]


@pytest.mark.parametrize(("step_s", "hosts"), [(0.0, 1), (math.inf, 1), (1.0, 0)])
def test_impossible_step_or_hosts_are_refused(step_s, hosts):
    with pytest.raises(ConfigError, match="expected both above 0"):
        plan_feed(VIDEO, step_s=step_s, num_hosts=hosts)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(FeedAssumptions)])
def test_assumption_that_cannot_be_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(ROUND, **{name: stated(0.0)})
