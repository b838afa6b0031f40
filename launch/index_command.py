"""Looks through a dataset once: which windows a run reads and which episodes it cannot, kept in a folder of arrays.

  wamjax data index --config=experiments/quickstart.py --out=indexes/metaworld
  wamjax data index DIR --out=FOLDER [--config=FILE] [--config.data.x=v ...]
  wamjax train --config=FILE --config.data.index=FOLDER --workdir=RUN

DIR stands for --config.data.path; without --config all cameras are looked at and the other keys are at their defaults.
Of a mixture each source has an index of its own, made with --source=NAME. The work is split over processes; killed and
started again, it makes what is missing. A run whose keys decide other windows, or a dataset that has changed since, is
refused by name. The index of a backbone's run is read by `wamjax data cache`: training on latents needs none.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

from absl import flags

from data_pipelines.indexing.job import describe_index, make_index
from data_pipelines.pipeline import prepare_normalisation
from data_pipelines.sources.formats import open_source, opens_in_parts
from data_pipelines.sources.remote import refuse_address
from launch.experiment import (
    OVERRIDE_FLAG,
    config_from_flags,
    define_config_flag,
    define_source_flag,
    select_source,
)
from launch.output import check_writable
from wamjax.config import bridge
from wamjax.config.blocks import reads_pixels
from wamjax.config.pixel_windows import pixel_windows
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout.buckets import shortest_windows


def define_flags() -> None:
    """Defines the flags of ``wamjax data index``."""
    define_config_flag(required=False)
    define_source_flag()
    flags.DEFINE_string("out", None, "Folder of the index.", required=True)
    flags.DEFINE_integer("num_workers", os.cpu_count() or 1, "Processes.", lower_bound=1)
    flags.DEFINE_integer("part_episodes", 500, "Episodes made at a time: what a kill costs.", lower_bound=1)
    flags.DEFINE_string("json", None, "File to write what was found to as JSON.")


def run(argv: list[str]) -> int:
    """Makes what is missing of the index and prints what it holds."""
    values = flags.FLAGS
    check_writable("json", values.json)
    refuse_address(values.out, "--out")
    config, out = _listed_windows(_read_config(argv)), Path(values.out)
    started = time.perf_counter()
    manifest = make_index(config, out, num_workers=values.num_workers, part_episodes=values.part_episodes)
    indexed = dataclasses.replace(config, data=dataclasses.replace(config.data, index=str(out)))
    prepare_normalisation(indexed)
    print(describe_index(manifest))
    print(f"{out}: complete, fingerprint {manifest.fingerprint}, {time.perf_counter() - started:.1f} s")
    if values.json:
        content = {"fingerprint": manifest.fingerprint, **dataclasses.asdict(manifest)}
        Path(values.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def _listed_windows(config: RunConfig) -> RunConfig:
    """Returns the run whose windows are listed: of a backbone the clips that `wamjax data cache` encodes."""
    shortest = shortest_windows(config)
    return shortest if reads_pixels(config) else pixel_windows(shortest)


def _read_config(argv: list[str]) -> RunConfig:
    """Returns the configuration of the flags, with the folder named on the command line as its dataset."""
    values = flags.FLAGS
    if len(argv) > 1 or not (argv or values.config):
        raise ConfigError(f"expected the folder of one dataset or --config, got {' '.join(argv) or 'neither'}")
    if values.config:
        config = select_source(config_from_flags())
    else:
        config = select_source(bridge.apply_overrides(RunConfig(), values[OVERRIDE_FLAG].value or ()))
    if argv:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=argv[0]))
    if config.data.views:
        return config
    if values.config:
        raise ConfigError("config.data.views is empty: name at least one camera there, or leave --config away")
    # Where on the canvas a view lies does not matter here.
    part = range(0) if opens_in_parts(config.data.path) else None
    cameras = open_source(config.data.path, cameras=(), columns=(), part=part).cameras
    views = tuple((camera, 0, 0, *config.data.canvas) for camera in cameras)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, views=views))
