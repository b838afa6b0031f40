"""What a run trains: a model, the randomness of a step, and the losses they give on a batch.

The trainer knows objectives through this interface alone; which one a configuration means is ``build_objective``'s.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx

from wamjax.batch import WamBatch
from wamjax.config.plan import check_plans
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout import Layout
from wamjax.objectives.joint import JointObjective
from wamjax.objectives.latent_frames import LatentFramesObjective
from wamjax.objectives.plan import PlanObjective
from wamjax.objectives.policy import PolicyObjective
from wamjax.objectives.queries import QueriesObjective
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.objectives.video import VideoObjective
from wamjax.objectives.world_action import WorldActionObjective
from wamjax.types import PRNGKey


@runtime_checkable
class Objective(Protocol):
    """A model and its losses."""

    @property
    def layout(self) -> Layout:
        """The layout of one sample."""
        ...

    def make_model(self, key: PRNGKey) -> nnx.Module:
        """Makes the model."""
        ...

    def draw_noise(self, key: PRNGKey, batch_size: int) -> Any:
        """Draws all randomness of one loss; equal noise makes two losses comparable."""
        ...

    def losses(
        self, model: Any, batch: WamBatch, noise: Any, observed: WamBatch | None = None
    ) -> dict[str, StreamLoss]:
        """Returns the losses by stream; ``observed`` is the batch whose context the model is shown."""
        ...

    def counts(self, batch: WamBatch) -> dict[str, jax.Array]:
        """Returns what each stream's loss is a mean over; it depends on the masks of the batch alone."""
        ...

    def total(self, losses: dict[str, StreamLoss]) -> jax.Array:
        """Returns the scalar that is minimised."""
        ...


def build_objective(config: RunConfig) -> Objective:
    """Returns the objective that ``config`` describes.

    Raises:
      ConfigError: The formulation and the model do not fit together, or the sizes of the layout do not.
    """
    check_plans(config)
    if config.vla is not None:
        return PolicyObjective(config)
    if config.gpt is not None:
        return QueriesObjective(config)
    for formulation, section in (("policy", "vla"), ("queries", "gpt")):
        if config.layout.formulation == formulation:
            raise ConfigError(f"config.layout.formulation={formulation} needs config.{section}, the model it is of")
    if config.layout.formulation == "plan":
        return PlanObjective(config)
    if config.objective.action_beta:
        raise ConfigError(
            f"config.objective.action_beta={config.objective.action_beta} belongs to config.layout.formulation=policy; "
            f"this one is {config.layout.formulation}: set it to ()"
        )
    if config.actions.modules != "none" and (config.backbone is None or config.layout.is_plain_clip):
        raise ConfigError(
            f"config.actions.modules={config.actions.modules} belongs to a backbone and a formulation with actions "
            f"(this one is {config.layout.formulation}); set it to none"
        )
    if config.backbone is None:
        if config.layout.formulation != "joint":
            raise ConfigError(
                f"config.layout.formulation={config.layout.formulation} needs config.backbone; the small model on "
                "pixels is trained by formulation joint"
            )
        return WorldActionObjective(config)
    if config.layout.formulation == "latent_frames":
        return LatentFramesObjective(config)
    return VideoObjective(config) if config.layout.formulation == "video" else JointObjective(config)


def abstract_model(objective: Objective) -> tuple[nnx.GraphDef[Any], nnx.State[Any, Any]]:
    """Returns the structure of the objective's model and the shapes of its parameters, allocating nothing."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: objective.make_model(jax.random.key(0))))
    return graphdef, state
