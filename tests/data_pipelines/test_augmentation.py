import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from skimage.color import rgb2yiq

from data_pipelines.augmentation import Augmentation, colour_map
from data_pipelines.pipeline import Pipeline, build_pipeline
from wamjax.batch import WamBatch
from wamjax.config import bridge
from wamjax.config.schema import DataConfig, RunConfig
from wamjax.config.sources import AugmentationConfig
from wamjax.errors import ConfigError

MakeConfig = Callable[..., RunConfig]
ALL = AugmentationConfig(crop=0.8, brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08)
VIEWS = (("a", 0, 0, 16, 16), ("b", 0, 16, 16, 16), ("gone", 16, 0, 16, 16))


def make_sample(frames: int = 3) -> WamBatch:
    """Two equal views that are the same in every frame, a missing one, and a corner that no view covers."""
    rng = np.random.default_rng(0)
    picture = rng.integers(60, 180, (16, 16, 3), dtype=np.uint8)
    video = np.zeros((frames, 32, 32, 3), np.uint8)
    video[:, :16, :16] = video[:, :16, 16:] = picture
    return WamBatch(video=video, view_mask=np.array([True, True, False]), provenance=np.zeros(3, np.int32))


def change(strengths: AugmentationConfig, seed: int = 0) -> np.ndarray:
    config = DataConfig(canvas=(32, 32), views=VIEWS, augmentation=strengths)
    return Augmentation(config)(make_sample(), np.random.default_rng(seed)).video


def test_all_frames_and_views_of_a_window_are_changed_alike() -> None:
    before, after = make_sample().video, change(ALL)
    assert (after != before).any()
    np.testing.assert_array_equal(after[1:], after[:-1])
    np.testing.assert_array_equal(after[:, :16, :16], after[:, :16, 16:])
    assert (after[:, 16:] == 0).all()  # a missing view and what no view covers stay black
    assert (change(ALL, seed=1) != after).any()


@pytest.mark.parametrize("name", ["crop", "brightness", "contrast", "saturation", "hue"])
def test_each_strength_does_what_it_says(name: str) -> None:
    before = make_sample().video[0, :16, :16].astype(float)
    after = change(dataclasses.replace(AugmentationConfig(), **{name: getattr(ALL, name)}))[0, :16, :16].astype(float)
    assert np.abs(after - before).max() > 2
    luma = [rgb2yiq(picture / 255)[..., 0] * 255 for picture in (before, after)]
    chroma = [np.hypot(*np.moveaxis(rgb2yiq(picture / 255)[..., 1:] * 255, -1, 0)) for picture in (before, after)]
    factor = np.sum(after * before) / np.sum(before * before)
    if name == "brightness":
        np.testing.assert_allclose(after, factor * before, atol=0.6)
    if name in ("saturation", "hue"):
        np.testing.assert_allclose(luma[1], luma[0], atol=1)
    if name == "hue":
        np.testing.assert_allclose(chroma[1], chroma[0], atol=1.5)
    if name == "contrast":
        assert luma[1].mean() == pytest.approx(luma[0].mean(), abs=0.5)
        assert abs(luma[1].std() / luma[0].std() - 1) > 0.02


def test_changes_of_nothing_change_nothing() -> None:
    matrix, offset = colour_map(brightness=1, contrast=1, saturation=1, hue=0, mean=np.full(3, 99.0))
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(offset, 0, atol=1e-6)


def read(pipeline: Pipeline, shards: int, position: int, count: int) -> np.ndarray:
    streams = [pipeline.train_stream(shard, shards, position) for shard in range(shards)]
    video = [np.concatenate([next(stream).video for stream in streams]) for _ in range(count)]
    for stream in streams:
        stream.close()
    return np.concatenate(video)


def test_draws_are_the_same_for_any_hosts_and_any_resume(dataset_path: Path, make_config: MakeConfig) -> None:
    config = make_config(dataset_path, augmentation=ALL, window_stride=8)
    pipeline = build_pipeline(config, workdir=None)
    whole = read(pipeline, 1, 0, 6)
    np.testing.assert_array_equal(read(pipeline, 4, 0, 6), whole)
    np.testing.assert_array_equal(read(build_pipeline(config, workdir=None), 2, 24, 3), whole[24:])
    plain = build_pipeline(make_config(dataset_path, window_stride=8), workdir=None)
    assert (read(plain, 1, 0, 6) != whole).any()
    for held_out in (pipeline, plain):  # held-out windows are as they are
        np.testing.assert_array_equal(
            held_out.validation_windows().batch([0]).video, plain.validation_windows().batch([0]).video
        )


def test_the_same_window_is_changed_anew_every_epoch(dataset_path: Path, make_config: MakeConfig) -> None:
    pipeline = build_pipeline(make_config(dataset_path, augmentation=ALL, window_stride=8), workdir=None)
    stream = pipeline.train_stream(0, 1)
    seen: dict[tuple[int, ...], list[np.ndarray]] = {}
    for _ in range(2 * len(pipeline.index.train) // 8 + 2):
        batch = next(stream)
        for row, place in enumerate(batch.provenance.tolist()):
            seen.setdefault(tuple(place), []).append(batch.video[row])
    stream.close()
    twice = [videos for videos in seen.values() if len(videos) > 1]
    assert len(twice) > 5
    assert all((first != second).any() for first, second, *_ in twice)


@pytest.mark.parametrize(
    ("override", "words"),
    [("crop=0", "config.data.augmentation.crop = 0.0 is out of range"), ("hue=0.6", "hue = 0.6 is out of range")],
)
def test_strengths_out_of_range_are_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bridge.apply_overrides(RunConfig(), [f"data.augmentation.{override}"])
