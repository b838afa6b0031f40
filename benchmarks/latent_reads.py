"""Records per second that one core reads at random from cached latents, against bare ``array_record``.

    python benchmarks/latent_reads.py [--records=400] [--record_bytes=1048576] [--folder=DIR]

Writes shards of random records, then reads all of them in a shuffled order: with ``ArrayRecordReader.read`` alone, and
with ``SplitRecords``, as training does. The files are in the page cache: this is what a core can do, not a disk.
Each is read several times in turn and the median counts; time is that of the processor, so that what else the machine
does does not count. Target: at least 800 records of 1 MB per second and core.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags
from array_record.python.array_record_module import ArrayRecordReader

from data_pipelines.latents.manifest import TRAIN, Field, Manifest, Split
from data_pipelines.latents.records import READER_OPTIONS, SplitRecords, pack, write_shard

_REPEATS = 5
_SHARD_RECORDS = 100


def make_shards(folder: Path, records: int, record_bytes: int) -> Manifest:
    """Writes ``records`` random records into ``folder`` and returns their manifest."""
    manifest = Manifest(
        dataset={"path": "", "fingerprint": ""},
        settings={},
        encoders={},
        fields=(Field(name="latents", dtype="bfloat16", shape=(record_bytes // 2,)),),
        splits={TRAIN: Split(windows=records, episodes=1)},
        shard_windows=_SHARD_RECORDS,
        prompts=(),
    )
    rng = np.random.default_rng(0)
    (field,) = manifest.fields
    for name, windows in manifest.shards(TRAIN):
        rows = (np.frombuffer(rng.bytes(record_bytes), field.dtype) for _ in windows)
        write_shard(folder / name, (pack({"latents": row}, manifest.fields) for row in rows))
    return manifest


def seconds_of(read: Callable[[int], object], order: np.ndarray) -> float:
    """Returns the processor time of reading every record once."""
    started = time.process_time()
    for index in order:
        read(int(index))
    return time.process_time() - started


def main(argv: list[str]) -> int:
    """Prints both rates and their ratio."""
    values = flags.FLAGS
    with tempfile.TemporaryDirectory(dir=values.folder) as name:
        folder = Path(name)
        manifest = make_shards(folder, values.records, values.record_bytes)
        records = SplitRecords(folder, manifest, TRAIN)
        readers = [ArrayRecordReader(str(folder / shard), READER_OPTIONS) for shard, _ in manifest.shards(TRAIN)]

        def read_bare(index: int) -> bytes:
            shard, place = divmod(index, _SHARD_RECORDS)
            return readers[shard].read([place])[0]

        order = np.random.default_rng(1).permutation(values.records)
        times = np.array(
            [[seconds_of(read_bare, order), seconds_of(records.__getitem__, order)] for _ in range(_REPEATS)]
        )
    bare, ours = values.records / np.median(times, axis=0)
    print(f"{values.records} records of {values.record_bytes:,} bytes, median of {_REPEATS}, records per core-second:")
    print(f"array_record {bare:,.0f}   SplitRecords {ours:,.0f}   ratio {ours / bare:.2f}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_integer("records", 400, "Records written and read.", lower_bound=1)
    flags.DEFINE_integer("record_bytes", 2**20, "Bytes of a record, an even number.", lower_bound=2)
    flags.DEFINE_string("folder", None, "Where the files are made; the system's temporary folder by default.")
    app.run(lambda argv: sys.exit(main(argv)))
