import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.pipeline import build_pipeline
from data_pipelines.render import render_batch, render_pictures
from wamjax.batch import WamBatch
from wamjax.config.schema import RunConfig


def test_picture_shows_the_frames_and_marks_those_past_the_end(
    dataset_path: Path, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    pipeline = build_pipeline(make_config(dataset_path), workdir=None)
    windows = pipeline.validation_windows()
    batch = windows.batch([0, len(windows) - 1])
    assert batch.frame_mask[0].all()
    assert not batch.frame_mask[1].all()
    grey = dataclasses.replace(batch, video=np.full_like(batch.video, 90))
    red_pixels = []
    for name, rows in (("whole.png", 1), ("cut.png", 2)):
        render_batch(grey, tmp_path / name, prompts=pipeline.prompts, num_samples=rows)
        picture = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert (picture == 90).all(-1).mean() > 0.05
        red_pixels.append(((picture[..., 0] > 200) & (picture[..., 1:].max(-1) < 60)).sum())
    assert red_pixels[0] == 0
    assert red_pixels[1] > 50


def test_pictures_of_cameras_lie_beside_each_other(tmp_path: Path) -> None:
    colours = np.array([(200, 40, 0), (0, 40, 200)], np.uint8)
    images = np.broadcast_to(colours[None, :, None, None], (1, 2, 8, 8, 3))
    render_pictures(WamBatch(images=images, provenance=np.zeros((1, 3), np.int32)), tmp_path / "first.png")
    picture = np.asarray(Image.open(tmp_path / "first.png").convert("RGB"))
    columns = [np.flatnonzero((picture == colour).all(-1).any(0)) for colour in colours]
    assert columns[0].max() < columns[1].min()
