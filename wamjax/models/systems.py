"""The model of a configuration of ``config.systems``."""

from __future__ import annotations

from wamjax.config.systems import ActionExpertConfig, ActionSystem, CategoryActionConfig
from wamjax.models.action_expert import ActionExpertTransformer
from wamjax.models.action_transformers import CategoryActionTransformer, SharedActionTransformer
from wamjax.types import PRNGKey

# All predict as ``CategoryActionTransformer.predict`` does.
ActionTransformer = CategoryActionTransformer | SharedActionTransformer | ActionExpertTransformer


def make_system(key: PRNGKey, config: ActionSystem) -> ActionTransformer:
    """Makes the model of ``config``."""
    if isinstance(config, CategoryActionConfig):
        return CategoryActionTransformer(key, config)
    if isinstance(config, ActionExpertConfig):
        return ActionExpertTransformer(key, config)
    return SharedActionTransformer(key, config)
