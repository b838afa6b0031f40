"""Settings of acting that nothing would read are refused where a configuration is read, and by what counts a chunk."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.flops.steps import vary
from tests.sampling.acting import load_twin
from wamjax.config import bridge
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.flops.chunk import count_chunk, count_two_stages
from wamjax.models.codec import PatchCodec
from wamjax.sampling.build import build_policy
from wamjax.sampling.policy import PatchLatents, PromptTable


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("unipi", "sampling.solver=adams", r"config\.sampling\.solver=adams .*this one is video: set it to euler or"),
        ("unipi:inverse_dynamics", "sampling.solver=adams", r"this one is frame_pairs: set it to euler$"),
        ("dreamzero_5b", "sampling.solver=adams", r"this one is joint: set it to euler or unipc"),
        ("latent_plan", "sampling.solver=adams", r"this one is plan: set it to euler$"),
        (
            "fast_wam_libero",
            "sampling.guidance=5",
            r"guidance=5\.0 changes nothing: no video is denoised to act .* at 1\.0$",
        ),
        (
            "dreamzero_5b",
            "sampling.action_steps=3",
            r"action_steps=3 changes nothing: .* family joint\); leave it at 0$",
        ),
        ("dreamzero_5b", "sampling.sigma_max=5", r"sigma_max=5\.0 changes nothing: .* leave it at 80\.0$"),
        ("pi05_droid", "sampling.solver=adams", r"this one is policy: set it to euler$"),
        ("cosmos_policy_libero", "sampling.solver=unipc", r"solver=unipc; .* is solved by adams or euler"),
        ("gr1", "sampling.evaluated_steps=(0, 1)", r"formulation queries answers at once"),
        (
            "latent_plan",
            "objective.prompt_dropout=0.1",
            r"config\.objective\.prompt_dropout=0\.1 .* plan is not guided",
        ),
        ("cosmos_policy_libero", "objective.prompt_dropout=0.1", r"latent_frames is not guided: set it to 0"),
        ("fast_wam_idm", "sampling.video_final_noise=0.5", r"config\.sampling\.video_final_noise=0\.5 .*set it to 0"),
        ("dreamzero_5b", "objective.action_shift=2", r"config\.sampling\.action_shift=2\.0 \(or, where it is 0"),
    ],
)
def test_what_no_policy_reads_is_refused_when_it_is_set(name: str, override: str, words: str) -> None:
    stem, _, stage = name.partition(":")
    config = load_twin(f"{stem}.py:{stage}" if stage else name)
    with pytest.raises(ConfigError, match=words) as refusal:
        bridge.apply_overrides(config, [override])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("setting", ["solver=unipc", "guidance=2", "evaluated_steps=(0, 3)", "video_final_noise=0.5"])
def test_the_small_model_reads_no_sampling(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"takes config\.evaluate\.solver_steps Euler steps without guidance"):
        bridge.apply_overrides(RunConfig(), [f"sampling.{setting}"])


def test_what_counts_a_chunk_refuses_it_too() -> None:
    with pytest.raises(ConfigError, match=r"config\.sampling\.solver=adams"):
        count_chunk(vary(load_twin("fast_wam_libero"), sampling={"solver": "adams"}))
    video, inverse = load_twin("unipi"), load_twin("unipi.py:inverse_dynamics")
    matching = {"canvas": (video.clip.height, video.clip.width)}
    video, inverse = (vary(config, data=matching) for config in (video, inverse))
    count_two_stages(video, inverse)
    with pytest.raises(ConfigError, match=r"config\.sampling\.solver=adams"):
        count_two_stages(vary(video, sampling={"solver": "adams"}), inverse)


def test_times_of_their_own_allow_shifts_of_their_own() -> None:
    own: dict[str, Any] = {"layout": {"action_times": "own"}, "sampling": {"action_shift": 1.0}}
    bridge.from_config_dict(bridge.to_config_dict(vary(load_twin("dreamzero_5b"), **own)))
    bridge.from_config_dict(bridge.to_config_dict(vary(load_twin("fast_wam_joint"), sampling={"action_shift": 1.0})))


def test_guidance_is_refused_where_training_had_nothing_it_could_lead_away_from() -> None:
    config = vary(load_twin("fast_wam_libero"), sampling={"action_guidance": 2.0})
    codec = PatchLatents(PatchCodec(config.clip.stride, (config.clip.height, config.clip.width)))
    assert config.backbone is not None
    table = PromptTable(text=np.zeros((1, config.clip.text_tokens, config.backbone.text_width), np.float32))
    with pytest.raises(
        ConfigError, match=r"action_guidance=2\.0, .*from scratch .*set both to 1, or train with dropped"
    ):
        build_policy(config, {}, codec=codec, prompts=table)
    tuned = vary(config, finetune={"base": "runs/pretrained"})
    build_policy(tuned, {}, codec=codec, prompts=table)
    build_policy(config, {}, codec=codec, prompts=dataclasses.replace(table, negative=table.text[0]))
