"""Open-loop evaluation: held-out windows through the model, scored against the truth and against baselines.

Owns which windows are sampled, what they are compared with and how the values become figures. The arithmetic is in
``wamjax.training.evaluate``. "Open loop": every block is predicted from what really happened before it; what the
prediction would have led to is the closed loop's question (``launch.closed_loop``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from data_pipelines.normalisation import Scale
from launch.film import Comparison
from wamjax.batch import WamBatch
from wamjax.config.schema import RunConfig
from wamjax.training import evaluate
from wamjax.training.intervals import Figure, figure_over_episodes

T = TypeVar("T")

# Draws of noise and timesteps behind one sensitivity: the loss at one timestep varies much more than with the input.
SENSITIVITY_DRAWS = 4
NUM_EXAMPLES = 8  # windows shown in films; pictures take some of them


class Windows(Protocol):
    """Held-out windows at random access (``data_pipelines.pipeline.ValidationWindows``)."""

    episodes: Any
    starts: Any

    def __len__(self) -> int: ...

    def batch(self, indices: Any) -> WamBatch:
        """Returns the windows at ``indices`` as one host batch."""
        ...


class Prediction(Protocol):
    """What a sampler predicts for a batch."""

    @property
    def video(self) -> Any:
        """Every frame after the first, uint8 ``[b f-1 H W 3]``; None where none are predicted."""
        ...

    @property
    def actions(self) -> Any:
        """Normalised actions, float32 ``[b a u]``."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The trained model as evaluation needs it.

    Attributes:
      predict: ``(batch, key) -> Prediction``.
      sample_losses: ``(batch, observed, draw) -> {"video": [b], "action": [b]}``, NaN where a window carries no loss;
        the model is shown the clean frames and state of ``observed``. The same integer draws the same noise and
        timesteps whatever the batches hold.
    """

    predict: Callable[[WamBatch, jax.Array], Prediction]
    sample_losses: Callable[[WamBatch, WamBatch, int], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One evaluated window, for pictures.

    Attributes:
      frames: Its true and predicted frames.
      true_actions: float32 ``[a u]``, normalised; NaN where masked.
      predicted_actions: float32 ``[a u]``, normalised; NaN where masked.
    """

    frames: Comparison
    true_actions: np.ndarray
    predicted_actions: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenLoop:
    """Figures and examples of one open-loop evaluation.

    Attributes:
      figures: By name (``launch.figures.FIGURES``); None where nothing could be scored.
      gains: By baseline: how much the model is better than it on the same episodes (above zero: better).
      by_dim: For each action dim, the action errors of model and baselines.
      by_frame: For each predicted frame of a window, PSNR of model and of copying the last frame.
      by_task: For each prompt, the main figures.
      num_windows: Windows evaluated.
      examples: A few windows in full.
    """

    figures: dict[str, Figure | None]
    gains: dict[str, Figure | None]
    by_dim: list[dict[str, Figure | None]]
    by_frame: list[dict[str, Figure | None]]
    by_task: dict[str, dict[str, Figure | None]]
    num_windows: int
    examples: list[Example]


def spread_windows(episodes: np.ndarray, count: int) -> np.ndarray:
    """Returns up to ``count`` window indices, shared evenly by the episodes and spread evenly within each.

    Args:
      episodes: int ``[windows]``, windows of one episode side by side in order of time.
      count: Windows wanted; fewer come back when an episode has fewer than its share.
    """
    names, first, size = np.unique(episodes, return_index=True, return_counts=True)
    if count < len(names):
        chosen = np.linspace(0, len(names) - 1, count).round().astype(int)
        first, size = first[chosen], size[chosen]
    shares = np.full(len(first), count // len(first))
    shares[: count % len(first)] += 1
    picks = [
        begin + np.unique(np.linspace(0, length - 1, min(share, length)).round().astype(int))
        for begin, length, share in zip(first, size, shares, strict=True)
    ]
    return np.concatenate(picks)


def spread(items: Sequence[T], count: int) -> list[T]:
    """Returns up to ``count`` of ``items``, evenly spaced from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def evaluate_open_loop(
    windows: Windows,
    model: Model,
    *,
    config: RunConfig,
    prompts: Sequence[str],
    scale: Scale,
    action_before: Callable[[int, int], np.ndarray],
) -> OpenLoop:
    """Scores the model on held-out windows.

    Args:
      windows: All held-out windows.
      model: Sampler and losses of the trained model.
      config: The run; ``config.evaluate`` says how many windows, resamples and which seed.
      prompts: Task strings by ``prompt_id``.
      scale: The run's action scale, for the baselines.
      action_before: ``(episode, start) -> float32 [i u]``: the action executed before each block of the window there,
        normalised as that block's actions are.

    Returns:
      Figures with intervals over episodes, and examples.
    """
    chosen = spread_windows(windows.episodes, config.evaluate.num_windows)
    episodes, starts = windows.episodes[chosen], windows.starts[chosen]
    size = config.train.global_batch_size
    example_rows = set(spread(range(len(chosen)), NUM_EXAMPLES))
    columns: dict[str, list[np.ndarray]] = {}
    examples: list[Example] = []
    prompt_ids = _prompt_ids(windows, chosen, size)
    donors = evaluate.choose_donors(episodes, prompt_ids, starts)
    base = jax.random.key(config.evaluate.seed)
    turns = range(0, len(chosen), size)
    for turn, begin in enumerate(tqdm(turns, desc="held-out windows", unit="batch", disable=None)):
        rows = np.arange(begin, min(begin + size, len(chosen)))
        # The last batch is filled up with its first rows: one shape, one compilation. What was added is dropped.
        filled = np.resize(rows, size)
        batch = windows.batch(chosen[filled])
        before = np.stack(
            [action_before(int(e), int(s)) for e, s in zip(episodes[filled], starts[filled], strict=True)]
        )
        prediction = model.predict(batch, jax.random.fold_in(base, turn))
        video = None if prediction.video is None else np.asarray(prediction.video)
        actions = np.asarray(prediction.actions)
        values = score_batch(batch, video, actions, before=before, config=config, scale=scale)
        if donors is not None:
            donor = windows.batch(chosen[donors[filled]])
            values |= measure_sensitivity(model, batch, donor, turn)
        for name, value in values.items():
            columns.setdefault(name, []).append(value[: len(rows)])
        for i, row in enumerate(rows):
            if int(row) in example_rows:
                examples.append(_example(batch, video, actions, i, prompts))
    table = {name: np.concatenate(parts) for name, parts in columns.items()}
    return _summarise(table, episodes, prompt_ids, examples, config=config, prompts=prompts)


def score_batch(
    batch: WamBatch,
    video: np.ndarray | None,
    actions: np.ndarray,
    *,
    before: np.ndarray,
    config: RunConfig,
    scale: Scale,
) -> dict[str, np.ndarray]:
    """Returns the values of every window of a batch for the model and for every baseline.

    Names are those of ``launch.figures.FIGURES``; ``NAME/dim`` holds ``[b u]``, ``NAME/frame`` holds ``[b f-1]``.
    """
    mask = evaluate.action_mask(batch)
    guesses = {
        "action_error": actions,
        "action_error_mean_baseline": constant_action(scale, np.asarray(scale.mean), batch.actions.shape[-1]),
        "action_error_repeat_baseline": evaluate.repeat_last_action(before, config.layout.actions_per_block),
        "action_error_zero_baseline": constant_action(scale, np.zeros(scale.num_dims), batch.actions.shape[-1]),
    }
    values: dict[str, np.ndarray] = {}
    for name, guess in guesses.items():
        values[name] = evaluate.action_error(guess, batch.actions, mask)
        values[f"{name}/dim"] = evaluate.action_error_by_dim(guess, batch.actions, mask)
    if video is None:
        return values
    pixels = evaluate.visible_pixels(config.data, batch.view_mask)
    copied = evaluate.copy_last_frame(batch.video, config.layout.frames_per_block)
    for suffix, frames in (("", video), ("_copy", copied)):
        scores = evaluate.score_frames(frames, batch.video[:, 1:], batch.frame_mask[:, 1:], pixels)
        values[f"video_psnr{suffix}"] = scores.psnr()
        values[f"video_psnr{suffix}/frame"] = scores.psnr_by_frame()
        values[f"video_ssim{suffix}"] = scores.mean_ssim()
    return values


def constant_action(scale: Scale, action: np.ndarray, num_dims: int) -> np.ndarray:
    """Returns one raw action ``[dims]`` in normalised units with padded dims zero: float32 ``[num_dims]``."""
    padded = np.zeros(num_dims, np.float32)
    padded[: scale.num_dims] = scale.normalise(action)
    return padded


def measure_sensitivity(model: Model, batch: WamBatch, donor: WamBatch, turn: int) -> dict[str, np.ndarray]:
    """Returns by how much exchanging an input with another sample's raises the loss of the other output.

    ``video_sensitivity``: video loss given the donor's actions minus given its own.
    ``action_sensitivity``: action loss given the donor's observation (clean frames and state) minus given its own.
    Noise and timesteps are equal in both, so that only the exchange differs; averaged over ``SENSITIVITY_DRAWS``.

    Args:
      model: The model.
      batch: The windows.
      donor: For each window another one to exchange inputs with.
      turn: Number of the batch: batches draw other noise.
    """
    other_actions = evaluate.with_actions_of(batch, donor)
    video, action = [], []
    for draw in range(turn * SENSITIVITY_DRAWS, (turn + 1) * SENSITIVITY_DRAWS):
        own = model.sample_losses(batch, batch, draw)
        if "action" in own:
            action.append(model.sample_losses(batch, donor, draw)["action"] - own["action"])
        if "video" in own:
            video.append(model.sample_losses(other_actions, batch, draw)["video"] - own["video"])
    found = {"video_sensitivity": video, "action_sensitivity": action}
    return {name: np.mean(draws, axis=0) for name, draws in found.items() if draws}


def _prompt_ids(windows: Windows, chosen: np.ndarray, size: int) -> np.ndarray:
    """Returns the task of every chosen window, int ``[windows]``, reading one window per episode."""
    episodes = windows.episodes[chosen]
    names, first, inverse = np.unique(episodes, return_index=True, return_inverse=True)
    ids = [windows.batch(chosen[first[begin : begin + size]]).prompt_id for begin in range(0, len(names), size)]
    return np.concatenate(ids)[inverse]


def _example(
    batch: WamBatch, video: np.ndarray | None, actions: np.ndarray, row: int, prompts: Sequence[str]
) -> Example:
    """Returns row ``row`` of an evaluated batch as an example; padded frames are left out."""
    real = batch.frame_mask[row]
    _, episode, start = (int(value) for value in batch.provenance[row])
    given = np.full(len(real), video is None)
    given[0] = True
    predicted = batch.video[row] if video is None else np.concatenate([batch.video[row, :1], video[row]])
    mask = evaluate.action_mask(batch)[row]
    return Example(
        frames=Comparison(
            true=batch.video[row][real],
            predicted=predicted[real],
            given=given[real],
            title=f"{prompts[int(batch.prompt_id[row])]} (episode {episode}, step {start})",
        ),
        true_actions=np.where(mask, batch.actions[row], np.nan),
        predicted_actions=np.where(mask, actions[row], np.nan),
    )


def _summarise(
    table: dict[str, np.ndarray],
    episodes: np.ndarray,
    prompt_ids: np.ndarray,
    examples: list[Example],
    *,
    config: RunConfig,
    prompts: Sequence[str],
) -> OpenLoop:
    """Turns values of windows into figures over episodes."""

    def figure(values: np.ndarray, of: np.ndarray | None = None) -> Figure | None:
        rows = slice(None) if of is None else of
        return figure_over_episodes(
            values[rows], episodes[rows], resamples=config.evaluate.bootstrap, seed=config.evaluate.seed
        )

    names = [name for name in table if "/" not in name]
    of_video, num_frames = ("video_psnr", "video_ssim"), 0
    none = ("action_sensitivity", "video_sensitivity", *of_video, *(f"{name}_copy" for name in of_video))
    figures: dict[str, Figure | None] = dict.fromkeys(none)
    figures |= {name: figure(table[name]) for name in names}
    gains: dict[str, Figure | None] = {f"{name}_copy": None for name in of_video}
    gains |= {name: figure(table[name] - table["action_error"]) for name in names if name.startswith("action_error_")}
    if "video_psnr" in table:
        gains |= {f"{name}_copy": figure(table[name] - table[f"{name}_copy"]) for name in of_video}
        num_frames = table["video_psnr/frame"].shape[1]
    errors = [name for name in names if name.startswith("action_error")]
    main = [*errors, "video_psnr", "video_psnr_copy", "action_sensitivity"]
    return OpenLoop(
        figures=figures,
        gains=gains,
        by_dim=[
            {name: figure(table[f"{name}/dim"][:, dim]) for name in errors}
            for dim in range(table["action_error/dim"].shape[1])
        ],
        by_frame=[
            {name: figure(table[f"{name}/frame"][:, frame]) for name in ("video_psnr", "video_psnr_copy")}
            for frame in range(num_frames)
        ],
        by_task={
            prompts[int(task)]: {
                name: figure(table[name], prompt_ids == task) if name in table else None
                for name in main
                if name in table or name in of_video
            }
            for task in np.unique(prompt_ids)
        },
        num_windows=len(episodes),
        examples=examples,
    )
