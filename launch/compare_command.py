"""Trains the members of a comparison with equal FLOPs, evaluates them alike, and sets them side by side.

  wamjax compare --config=experiments/sweeps/formulations.py --flops=2e12 --output=runs/formulations

Writes OUTPUT/MEMBER (a work directory, train.log, result.json), and comparison.md, comparison.json and comparison.png
of all that is finished. A member of two stages has a work directory for each in its folder; SECOND_STAGES of the file
says how they share its budget. A member whose result is there is not run again; one that fails is named and the others
go on. Overrides (--config.SECTION.KEY=VALUE) are for all members. Exit 1 where a member failed.

A member is trained by a process of its own beside this one: on a GPU set XLA_PYTHON_CLIENT_PREALLOCATE=false.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags, logging

from data_pipelines.embodiments.apply import apply_embodiment
from data_pipelines.latents.manifest import cache_settings, record_fields
from data_pipelines.sources.remote import refuse_address
from launch import distributed
from launch.backbone_evaluation import BackboneEvaluation, evaluate_backbone, evaluate_two_stages, restore_run
from launch.comparison_page import write_comparison
from launch.evaluation_products import describe_evaluation
from launch.experiment import OVERRIDE_FLAG, define_config_flag, load_experiment, load_members
from launch.patch_latents import fill_patch_latents
from launch.workdir import WorkDir, config_hash
from wamjax.batch import batch_spec
from wamjax.config import bridge
from wamjax.config.blocks import reads_pixels
from wamjax.config.schema import RunConfig
from wamjax.config.two_stage import check_stages
from wamjax.errors import ConfigError, DataError, WamjaxError
from wamjax.flops.model import count_flops
from wamjax.layout import build_layout

RESULT_FILE = "result.json"
_DECIDED = ("train.num_steps", "data.latents")


def define_flags() -> None:
    """Defines the flags of ``wamjax compare``."""
    define_config_flag()
    flags.DEFINE_list("members", None, "Which members, by name; all that the file has by default.")
    flags.DEFINE_float("flops", None, "Training FLOPs of every member (model FLOPs).", required=True, lower_bound=1.0)
    flags.DEFINE_string("output", None, "Folder to fill, or to go on filling.", required=True)
    distributed.define_device_flags()


def run(argv: list[str]) -> int:
    """Runs what is missing and writes the comparison; returns 1 where a member failed."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; wamjax compare takes flags only")
    values = flags.FLAGS
    known = load_members(values.config)
    chosen = tuple(known) if values.members is None else tuple(values.members)
    if not chosen:
        raise ConfigError(f"--members is empty; {values.config} has {', '.join(known)}")
    for member in chosen:
        if member not in known:
            raise ConfigError(f"--members has {member!r}; {values.config} has {', '.join(known)}")
    distributed.start_devices(values.cpu_devices)
    if jax.default_backend() == "tpu":
        raise ConfigError(
            "wamjax compare trains in a process beside this one, and a TPU has one; set JAX_PLATFORMS=cpu"
        )
    refuse_address(values.output, "--output")
    output, failures = Path(values.output), {}
    output.mkdir(parents=True, exist_ok=True)
    plans = {member: plan_member(values.config, known[member], values.flops) for member in chosen}
    for member in chosen:
        if (output / member / RESULT_FILE).exists():
            check_result(member, output, plans[member].identity)
            print(f"{member}: finished before", flush=True)
            continue
        try:
            _run_member(member, output, plans[member])
            print(f"{member}: finished", flush=True)
        except Exception as error:  # one member's fault, whatever it is, is not the others'
            # A refusal is told at the end; what nobody foresaw is shown with where it happened.
            if not isinstance(error, WamjaxError):
                logging.exception("member %s failed", member)
            failures[member] = " ".join(str(error).split()) or type(error).__name__
    results = [read_result(output / member) for member in known if (output / member / RESULT_FILE).exists()]
    print(write_comparison(output, results, failures))
    return 1 if failures else 0


class RunPlan(NamedTuple):
    """What one run of a member is to be.

    Attributes:
      name: What ``get_config`` of the experiment file takes.
      config: Its configuration, with its steps, but for its latents.
      overrides: Of the command line.
      flops_per_step: Model FLOPs.
    """

    name: str
    config: RunConfig
    overrides: tuple[str, ...]
    flops_per_step: int

    @property
    def flops(self) -> int:
        """Model FLOPs of its training."""
        return self.config.train.num_steps * self.flops_per_step


class MemberPlan(NamedTuple):
    """What a member is to be trained as: one run, or the two of a system of two stages."""

    runs: tuple[RunPlan, ...]

    @property
    def identity(self) -> str:
        """Hash of the configurations, each with its steps."""
        return "+".join(config_hash(run.config) for run in self.runs)

    @property
    def flops(self) -> int:
        """Model FLOPs of all its training."""
        return sum(run.flops for run in self.runs)


def plan_member(file: str, runs: Mapping[str, float], budget: float) -> MemberPlan:
    """Returns how a member is trained with ``budget`` FLOPs.

    Args:
      file: The experiment file.
      runs: Names of the member's runs, and what share of the budget each has.
      budget: Model FLOPs.

    Raises:
      ConfigError: As ``plan_run``, or two runs make no system.
    """
    plan = MemberPlan(tuple(plan_run(file, name, budget * share) for name, share in runs.items()))
    if len(plan.runs) > 1:
        check_stages(*(run.config for run in plan.runs))
    return plan


def plan_run(file: str, own_name: str, budget: float) -> RunPlan:
    """Returns how the run ``FILE:NAME`` is trained with ``budget`` FLOPs.

    Raises:
      ConfigError: An override is of what the comparison decides, or a member reads a mixture.
    """
    overrides = tuple(flags.FLAGS[OVERRIDE_FLAG].value or ())
    for override in overrides:
        if override.partition("=")[0] in _DECIDED:
            raise ConfigError(f"--config.{override}: wamjax compare decides it by --flops and --output; leave it out")
    name = f"{file}:{own_name}"
    config = apply_embodiment(bridge.apply_overrides(load_experiment(name), overrides))
    if config.data.mixture.sources:
        raise ConfigError(f"{name} reads config.data.mixture; wamjax compare evaluates members on one dataset")
    per_step = config.train.global_batch_size * count_flops(config, build_layout(config)).model_total
    if not per_step <= budget < math.inf:
        raise ConfigError(f"--flops gives {name} {budget:g}; one step needs {per_step:.3g}, and the budget is finite")
    config = bridge.apply_overrides(config, [f"train.num_steps={round(budget / per_step)}"])
    return RunPlan(own_name, config, overrides, per_step)


def check_result(member: str, output: Path, identity: str) -> None:
    """Refuses a finished result of other settings.

    Raises:
      ConfigError: ``result.json`` is of another configuration or budget.
      DataError: It is damaged.
    """
    found = read_result(output / member).get("config_hash")
    if found != identity:
        raise ConfigError(
            f"--output={output} holds {member} trained with another --flops or other settings ({found}, now "
            f"{identity}); choose another --output, or remove {output / member}"
        )


def read_result(folder: Path) -> dict[str, Any]:
    """Returns what a finished member wrote.

    Raises:
      DataError: The file is damaged.
    """
    path = folder / RESULT_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; remove {folder} to run the member again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: expected an object; remove {folder} to run the member again")
    return found


def _run_member(member: str, output: Path, plan: MemberPlan) -> None:
    """Trains and evaluates one member and writes its result, last and whole."""
    folder = output / member
    trained = [_train_run(run, folder if len(plan.runs) == 1 else folder / run.name, output) for run in plan.runs]
    if len(trained) == 1:
        found = evaluate_backbone(restore_run(*trained[0]))
    else:
        first, second = (restore_run(*run) for run in trained)
        _, found = evaluate_two_stages(first, second)
    result = describe_result(member, plan, found) | {"config_hash": plan.identity}
    temporary = folder / f"{RESULT_FILE}.tmp"
    temporary.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, folder / RESULT_FILE)


def _train_run(plan: RunPlan, workdir: Path, output: Path) -> tuple[WorkDir, RunConfig]:
    """Trains one run, on samples made before where it reads such."""
    added = [f"train.num_steps={plan.config.train.num_steps}"]
    if not reads_pixels(plan.config):
        latents = output / "latents" / _latents_key(plan.config)
        added.append(f"data.latents={latents}")
        fill_patch_latents(bridge.apply_overrides(plan.config, added), latents)
    workdir.mkdir(parents=True, exist_ok=True)
    _train(f"{flags.FLAGS.config}:{plan.name}", [*plan.overrides, *added], workdir)
    return WorkDir(workdir), bridge.apply_overrides(plan.config, added)


def describe_result(member: str, plan: MemberPlan, found: BackboneEvaluation) -> dict[str, Any]:
    """Returns the content of ``result.json``: what ``eval.json`` has, and what training and a chunk cost.

    What training took is of all runs of the member; ``stages`` has it by run.
    """
    stages = {
        run.name: {
            "formulation": run.config.layout.formulation,
            "training_flops": run.flops,
            "training_steps": run.config.train.num_steps,
            "parameters": count_flops(run.config, build_layout(run.config)).num_parameters,
        }
        for run in plan.runs
    }
    return {
        "member": member,
        "formulation": "+".join(stage["formulation"] for stage in stages.values()),
        "training_flops": plan.flops,
        "training_steps": sum(stage["training_steps"] for stage in stages.values()),
        "parameters": sum(stage["parameters"] for stage in stages.values()),
        "stages": stages,
        **found.describe_chunk(),
        **describe_evaluation(found.open_loop, found.rollouts, found.reason, step=found.step, episodes=found.episodes),
    }


def _latents_key(config: RunConfig) -> str:
    """Returns the folder name of the latents that ``config`` reads: equal where these are."""
    text = batch_spec(config, 1).text
    fields = [str(field) for field in record_fields(config)]
    content = [cache_settings(config), fields, None if text is None else text.shape[-1]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _train(config: str, overrides: Sequence[str], workdir: Path) -> None:
    """Runs ``wamjax train``, which resumes what was begun.

    Raises:
      DataError: It failed; the message ends with its last line.
    """
    words = [sys.executable, "-m", "launch.cli", "train", f"--config={config}", f"--workdir={workdir}"]
    words += [f"--config.{override}" for override in overrides]
    if flags.FLAGS.cpu_devices is not None:
        words.append(f"--cpu_devices={flags.FLAGS.cpu_devices}")
    log = workdir / "train.log"
    with log.open("a", encoding="utf-8") as stream:
        status = subprocess.run(words, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        lines = log.read_text(encoding="utf-8").strip().splitlines() or ["no output"]
        raise DataError(f"training ended with status {status}: {lines[-1]} ({log})")
