"""Cosmos Policy on RoboCasa: pictures, states, actions and a value as latent frames of Cosmos-Predict2 2B.

Command:   wamjax plan --config=experiments/systems/cosmos_policy_robocasa.py --topology=v5p:4x4x4 --compile
Paper:     Cosmos Policy; sizes and hyperparameters of its released code and configurations
Sequence:  11 frames x 14 x 14 = 2,156 tokens, padded to 2,156
Mesh:      64 chips of TPU v5p: fsdp 32, context 2 (800 samples do not divide over 64)
Differs:   the learning rate falls along a cosine to 0.06 of its peak, where the released one falls to 0.3 over 30,000
           steps and then steps down to 0.06. wamjax data cache makes no such samples: it plans
           and builds, and its twin in experiments/sweeps/formulations.py trains and acts.
"""

from ml_collections import config_dict

from experiments.systems import cosmos_policy_libero


def get_config() -> config_dict.ConfigDict:
    config = cosmos_policy_libero.get_config()
    # 3 views of 224 x 224, now and after the chunk; every picture is a latent frame of its own.
    sizes = {"clip": {"num_frames": 6}, "layout": {"frames_per_block": 3, "actions_per_block": 32}}
    run = {"train": {"num_steps": 45_000, "global_batch_size": 800}}
    config.update({"name": "cosmos_policy_robocasa", **sizes, **run})
    return config
