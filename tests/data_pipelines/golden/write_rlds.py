"""Writes the RLDS datasets beside this file with the real `tensorflow-datasets` package (4.9.10, TensorFlow 2.21).

Usage: python write_rlds.py OUT tfrecord|array_record. Imports nothing of this project: run it with an interpreter that
has `tensorflow-datasets` and `tensorflow`. The tests repeat the values in their own words.
"""

import sys

import numpy as np
import tensorflow_datasets as tfds

LENGTHS = (6, 4, 8)
TASKS = ("open the box", "close the box", "open the box")


class TinyRlds(tfds.core.GeneratorBasedBuilder):
    """Three episodes in two splits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        step = {
            "observation": {
                "image": features.Image(shape=(32, 32, 3), encoding_format="jpeg"),
                "wrist_image": features.Image(shape=(16, 24, 3), encoding_format="png"),
                "state": features.Tensor(shape=(3,), dtype=np.float32),
            },
            "action": features.Tensor(shape=(2,), dtype=np.float32),
            "is_first": features.Scalar(dtype=np.bool_),
            "language_instruction": features.Text(),
        }
        episode = {"steps": features.Dataset(step), "episode_metadata": {"file_path": features.Text()}}
        return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(episode))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples((0, 1)), "val": self._generate_examples((2,))}

    def _generate_examples(self, episodes):
        for episode in episodes:
            steps = [
                {
                    "observation": {
                        "image": np.full((32, 32, 3), (20 * step + 10, 60 * episode + 30, 90), np.uint8),
                        "wrist_image": np.full((16, 24, 3), 50 * episode + step, np.uint8),
                        "state": np.array([step, episode, 1], np.float32),
                    },
                    "action": np.array([episode + step / 8, -step], np.float32),
                    "is_first": step == 0,
                    "language_instruction": TASKS[episode],
                }
                for step in range(LENGTHS[episode])
            ]
            yield str(episode), {"steps": steps, "episode_metadata": {"file_path": f"raw/{episode}.h5"}}


if __name__ == "__main__":
    TinyRlds(data_dir=sys.argv[1], file_format=sys.argv[2]).download_and_prepare()
