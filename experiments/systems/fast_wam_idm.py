"""Fast-WAM's inverse-dynamics mode on RoboTwin: actions read a copy of the video, noised half of the time.

Command:   wamjax plan --config=experiments/systems/fast_wam_idm.py --topology=v5p:4x4x4 --compile
Paper:     Fast-WAM (arXiv 2603.16666); sizes and hyperparameters of its released code and configurations
Sequence:  noisy and copy 3 x 12 x 10, 32 actions = 752 tokens, padded to 752
Mesh:      64 chips of TPU v5p: fsdp 64
Differs:   how much noise the copy gets is not published; t is uniform up to 0.5, as LingBot-VA's history.
"""

from ml_collections import config_dict

from experiments.systems import fast_wam_robotwin


def get_config() -> config_dict.ConfigDict:
    config = fast_wam_robotwin.get_config()
    mode = {"layout": {"family": "inverse_dynamics"}, "objective": {"history_noise": 0.5}}
    config.update({"name": "fast_wam_idm", **mode})
    return config
