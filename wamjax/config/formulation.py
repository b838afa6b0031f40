"""What a system learns from a sample: its token streams (``LayoutConfig``) and its losses (``ObjectiveConfig``)."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """Which token streams one training sample holds, and how time is cut into blocks.

    Attributes:
      formulation: ``joint``: blocks of video and actions denoised together with teacher forcing (DreamZero); with
        ``config.backbone`` it needs ``config.actions.modules``. The others need ``config.backbone``. ``video``: one
        clip denoised as a whole, all tokens seeing all (video pretraining). ``alternating``: chunks of video and of
        actions take turns, each denoised from all before it (LingBot-VA). ``first_frame``: one clip denoised as a whole
        from its first frame, beside its actions (Fast-WAM). ``latent_frames``: pictures, states, actions and a value as
        latent frames of one video, all seeing all (Cosmos Policy). ``policy`` needs ``config.vla``: actions denoised
        given pictures and a prompt (Pi-0.5). ``queries`` needs ``config.gpt``: learned queries ask for every step's
        action and for a later frame (GR-1). ``plan`` needs ``config.actions.modules = plan``: actions decoded from a
        latent plan, which training infers from the whole clip and acting from its first frame alone (Play-LMP).
      family: With ``first_frame``, what actions are read from: ``representation``: the first frame, so that no video
        need be denoised to act; ``joint``: the video while it is denoised; ``inverse_dynamics``: a copy of the video.
        ``plan`` is of ``representation``.
      num_blocks: Temporal blocks: of ``joint`` after the first frame, of ``alternating`` from it on; steps of
        ``queries``; 1 of ``first_frame``, ``latent_frames``, ``policy`` and ``plan``.
      frames_per_block: Latent frames of one block; of ``latent_frames`` the views, which are seen now and later.
      actions_per_block: Action tokens of one block (the action horizon of one chunk).
      states_per_block: States of one block, read at the block's start; 0 for none.
      clean_context: With ``joint``, how clean frames after the first see clean frames: ``block_causal``, their own
        block whole (DreamZero's paper), or ``token_causal``, up to themselves (its released kernel: for its weights).
      action_times: With ``joint``, whether actions are noised at their block's timestep (``shared``) or at their
        ``own`` (DreamZero-Flash). In other formulations they have their own.
      window: With ``alternating``, how many half chunks back a token sees; 0 for all.
      noisy_first_frame: Whether the first frame also appears in the noisy stream (as in DreamZero); without it the
        first frame is context only.
      clean_last_block: Whether the last block also appears in the clean stream, as in DreamZero. Nothing looks at it
        there; without it the result is the same and the sequence shorter.
      order: ``natural`` lays streams one after the other; ``grouped`` keeps what one block denoises contiguous.
      pad_multiple: The packed sequence is padded at its end to a multiple of this.
      pad_unit: Every unit of ``joint`` that is visible as a whole (a clean block; with ``grouped`` also what one block
        denoises) is padded to a multiple of this. 128 lets the blocks of a TPU kernel end where units do.
    """

    formulation: Literal[
        "joint", "video", "alternating", "first_frame", "latent_frames", "policy", "queries", "plan"
    ] = "joint"
    family: Literal["representation", "joint", "inverse_dynamics"] = "joint"
    num_blocks: int = 4
    frames_per_block: int = 2
    actions_per_block: int = 8
    states_per_block: int = 1
    clean_context: Literal["block_causal", "token_causal"] = "block_causal"
    action_times: Literal["shared", "own"] = "shared"
    window: int = 0
    noisy_first_frame: bool = True
    clean_last_block: bool = True
    order: Literal["natural", "grouped"] = "grouped"
    pad_multiple: int = 1
    pad_unit: int = 1

    @property
    def is_plain_clip(self) -> bool:
        """Whether a sample is one clip of a plain video model, without tokens of anything else."""
        return self.formulation in ("video", "latent_frames")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Flow matching: x_t = (1 - t) x_0 + t noise, velocity = noise - x_0, t in (0, 1].

    Attributes:
      shift: Timestep shift s: t -> s t / (1 + (s - 1) t). 1 leaves t uniform.
      weighting: Loss weight over t: ``uniform``, or ``gaussian`` (Wan / DreamZero: exp(-2 ((id - 500) / 1000)^2) less
        its minimum, mean 1 on the shifted grid of ``num_timesteps``).
      action_shift: The same for actions with timesteps of their own; 0 for that of the video.
      video_beta: Parameters (a, b) of a Beta distribution from which the place of the video's timesteps on the grid is
        drawn, 1 being noise; empty: uniform. DreamZero-Flash has (7, 1), with ``config.layout.action_times = own``.
      action_beta: Parameters (a, b) of a Beta distribution from which the time of ``policy``'s actions is drawn, as
        0.001 + 0.999 x; empty: uniform. Pi-0.5 has (1.5, 1). Its losses have no weights and its times no grid.
      num_timesteps: Number of timestep ids on the shifted grid.
      prompt_dropout: Probability that a sample's prompt is replaced by the empty one, so that guidance has something to
        lead away from (``PromptTable.negative`` is its embedding then). Of a backbone, whose latents have it embedded.
      history_noise: Probability that noise is added to a sample's clean video (``alternating``), or to the copy of it
        that actions are read from (``first_frame``, ``inverse_dynamics``).
      history_max_time: Largest t at which that noise is added.
      video_weight: Factor on the video loss.
      action_weight: Factor on the action loss.
      value_weight: Factor on the loss of the value (``latent_frames``; a later state counts as video there).
      gripper_weight: Factor on the loss of the gripper's two classes (``queries``).
      plan_weight: Factor on KL(posterior || prior) of ``plan``, in nats per sample (beta of Play-LMP).
      plan_balance: Share a of that divergence's gradient that moves the prior: the prior's is scaled by 2 a, the
        posterior's by 2 (1 - a), and 0.5 scales neither (Play-LMP). HULC has 0.8, at half the weight: its factors are
        a and 1 - a.
      edm_log_mean: Mean of log sigma, with ``latent_frames``, where t = sigma / (sigma + 1).
      edm_log_std: Standard deviation of log sigma.
      edm_uniform: Share of samples whose sigma is uniform instead.
      edm_range: Smallest and largest sigma of those.
      video_prediction: What the patch head predicts: ``velocity``, or ``x0`` (converted to velocity for the loss).
      video_residual: ``last_clean`` adds the last clean frame before the block to a predicted x0, so that a zero
        output copies that frame; ``none`` adds nothing. Needs ``video_prediction = x0``.
      action_prediction: As ``video_prediction``, for actions.
      min_time: Smallest t used when a predicted x0 is converted to velocity (division by t).
    """

    shift: float = 5.0
    action_shift: float = 0.0
    weighting: Literal["uniform", "gaussian"] = "gaussian"
    video_beta: tuple[float, ...] = ()
    action_beta: tuple[float, ...] = ()
    num_timesteps: int = 1000
    prompt_dropout: float = 0.0
    history_noise: float = 0.0
    history_max_time: float = 0.5
    video_weight: float = 1.0
    action_weight: float = 1.0
    value_weight: float = 1.0
    gripper_weight: float = 1.0
    plan_weight: float = 0.01
    plan_balance: float = 0.5
    edm_log_mean: float = 1.386
    edm_log_std: float = 1.2
    edm_uniform: float = 0.3
    edm_range: tuple[float, float] = (1.0, 85.0)
    video_prediction: Literal["velocity", "x0"] = "velocity"
    video_residual: Literal["none", "last_clean"] = "none"
    action_prediction: Literal["velocity", "x0"] = "velocity"
    min_time: float = 0.05
