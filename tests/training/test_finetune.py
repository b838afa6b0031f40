"""Which parameters a run trains, what it keeps, and that a checkpoint goes with one base only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.sampling.acting import load_twin
from tests.tiny import TINY
from wamjax.batch import fake_batch
from wamjax.config.backbone import ActionsConfig
from wamjax.config.schema import FinetuneConfig, LayoutConfig, ObjectiveConfig, ParallelConfig
from wamjax.errors import ConfigError
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.parallel.mesh import build_mesh, make_global_batch
from wamjax.parallel.parameters import flatten_params
from wamjax.training.base import load_base
from wamjax.training.checkpoint import CheckpointStore
from wamjax.training.program import build_program
from wamjax.training.trainable import join_trees, split_tree, trained_paths

LORA = FinetuneConfig(frozen=("*",), lora_targets=("blocks.*attention", "blocks.mlp"), lora_rank=2, lora_alpha=4.0)


def model_of(**fields):
    return dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, **fields))


def build(config, devices=1):
    return build_program(config, build_mesh(config.parallel, jax.devices()[:devices]))


def program_of(finetune, *, parallel=TINY.parallel, devices=1, **train):
    train = dataclasses.replace(TINY.train, **train)
    return build(dataclasses.replace(TINY, finetune=finetune, train=train, parallel=parallel), devices)


def batch_of(program):
    return make_global_batch(fake_batch(program.config, 8), program.mesh)


def host(tree):
    return {path: np.array(leaf) for path, leaf in flatten_params(tree).items()}


@pytest.fixture(scope="module")
def base_run(tmp_path_factory):
    """A run of two steps from scratch, its work directory and its last state."""
    program, workdir = program_of(FinetuneConfig()), tmp_path_factory.mktemp("base")
    state = program.init()
    for _ in range(2):  # the first learning rate is 0
        state, _ = program.step(state, batch_of(program))
    save(workdir, 2, state)
    return program, workdir, state


@pytest.fixture(scope="module")
def lora_run(base_run):
    """A run on it that trains updates and the head: its start and its end."""
    _, workdir, _ = base_run
    program = program_of(dataclasses.replace(LORA, base=str(workdir), trained=("video_head",)))
    base = program.load_base()
    state = program.init(None, base)
    start = host(program.evaluation_params(state))
    for _ in range(3):  # the updates' ``down`` has a gradient once ``up`` is not zero
        state, _ = program.step(state, batch_of(program))
    return program, base, start, state


def save(workdir, step, state, base=None):
    store = CheckpointStore(workdir / "checkpoints")
    store.save(step, state, position=0, ledger={}, config_hash="", base_hash=base.hash if base else None)
    store.wait()
    return store


def test_everything_is_trained_but_the_statistics_of_the_data():
    _, variables = abstract_model(build_objective(TINY))
    trained = trained_paths(variables, TINY.finetune)
    assert set(flatten_params(nnx.to_pure_dict(variables))) - trained == {"codec.mean", "codec.std"}


def test_frozen_patterns_name_parameters_or_modules_and_trained_ones_are_excepted():
    _, variables = abstract_model(build_objective(TINY))
    config = FinetuneConfig(frozen=("blocks.mlp", "*_head", "time_embedding.*"), trained=("blocks.mlp.up.bias",))
    kept = trained_paths(variables, FinetuneConfig()) - trained_paths(variables, config)
    assert kept == {
        "blocks.mlp.up.kernel", "blocks.mlp.down.kernel", "blocks.mlp.down.bias",
        "video_head.kernel", "video_head.bias",
        "time_embedding.hidden.kernel", "time_embedding.hidden.bias", "time_embedding.out.kernel",
        "time_embedding.out.bias", "time_embedding.project.kernel", "time_embedding.project.bias",
    }  # fmt: skip


def test_lora_keeps_its_kernels_and_trains_what_is_not_frozen_beside_the_updates():
    config = dataclasses.replace(TINY, finetune=dataclasses.replace(LORA, trained=("action_decoder",)))
    trained = trained_paths(abstract_model(build_objective(config))[1], config.finetune)
    layers = [
        *(f"{kind}_attention.{name}.lora" for kind in ("self", "cross") for name in ("query", "key", "value")),
        *(f"{kind}_attention.out_lora" for kind in ("self", "cross")),
        *(f"mlp.{name}.lora" for name in ("up", "down")),
    ]
    updates = {f"blocks.{layer}.{part}" for layer in layers for part in ("down", "up")}
    decoder = {f"action_decoder.{layer}.{part}" for layer in ("hidden", "out") for part in ("kernel", "bias")}
    assert trained == updates | decoder


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"frozen": ("block.mlp",)}, r"finetune\.frozen: 'block\.mlp' names no parameter .* one is blocks\.mlp"),
        ({"frozen": ("*",), "trained": ("head",)}, r"finetune\.trained: 'head' names no parameter"),
        ({"lora_targets": ("blocks.attn",)}, r"finetune\.lora_targets: 'blocks\.attn' names no kernel"),
        ({"frozen": ("*",)}, r"leaves nothing to train"),
    ],
)
def test_a_pattern_that_names_nothing_or_everything_is_refused(fields, expected):
    with pytest.raises(ConfigError, match=expected):
        program_of(FinetuneConfig(**fields))


def test_optimizer_and_average_have_state_for_trained_parameters_only():
    program = program_of(FinetuneConfig(frozen=("*",), trained=("action_decoder",)))
    for part in (program.abstract_state["ema"], *moments(program.abstract_state["opt"])):
        assert {path.split(".")[0] for path in flatten_params(part)} == {"action_decoder"}
    sizes = {path: leaf.size for path, leaf in flatten_params(program.abstract_params).items()}
    assert len(sizes) == len(program.trained) + len(flatten_params(program.abstract_state["frozen"]))


def moments(opt):
    adam = next(part for part in jax.tree.leaves(opt, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu"))
    return adam.mu, adam.nu


@pytest.mark.slow
def test_lora_starts_as_its_base_trains_what_it_should_and_nothing_else(base_run, lora_run):
    base_program, _, base_state = base_run
    program, _, start, state = lora_run
    base_params = host(base_program.evaluation_params(base_state))
    assert all(np.array_equal(start[path], value) for path, value in base_params.items())
    after, kept = host(state["params"]), host(state["frozen"])
    assert after.keys() == program.trained
    assert all(np.array_equal(kept[path], start[path]) for path in kept)
    assert [path for path in after if np.array_equal(after[path], start[path])] == []


@pytest.mark.slow
def test_gradients_of_a_part_are_those_of_the_whole_model(base_run):
    whole, workdir, _ = base_run
    part = program_of(FinetuneConfig(base=str(workdir), frozen=("*",), trained=("blocks.mlp.up",)))
    states = [program.init(None, part.load_base()) for program in (whole, part)]
    (mu, _), (own, _) = (
        moments(program.step(state, batch_of(program))[0]["opt"])
        for program, state in zip((whole, part), states, strict=True)
    )
    gradient, expected = (np.asarray(tree["blocks"]["mlp"]["up"]["kernel"]) for tree in (own, mu))
    # Clipping scales all gradients by one number, which differs with the norm of what is trained.
    scale = np.vdot(gradient, expected) / np.vdot(expected, expected)
    np.testing.assert_allclose(gradient, scale * expected, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.slow
def test_a_checkpoint_holds_what_was_trained_and_is_completed_by_its_base(lora_run, tmp_path):
    program, base, _, state = lora_run
    store = save(tmp_path, 1, program.saved(state), base)
    stored = [path.partition(".")[::2] for path in store.read_record(1).digests]
    assert {path for section, path in stored if section == "params"} == program.trained
    assert {section for section, _ in stored} == {"params", "opt", "ema", "skipped", "step"}

    restored = store.restore_latest(program.saved(program.abstract_state), base_hash=base.hash)
    assert restored is not None
    again = host(program.evaluation_params(program.complete(restored.state, program.load_base())))
    expected = host(program.evaluation_params(state))
    assert again.keys() == expected.keys()
    assert all(np.array_equal(again[path], expected[path]) for path in expected)


@pytest.mark.slow
def test_a_run_that_trained_everything_stands_alone_and_may_be_a_base(base_run, tmp_path):
    _, workdir, _ = base_run
    program = program_of(FinetuneConfig(base=str(workdir)))
    assert not program.config.finetune.needs_base
    state = program.init(None, program.load_base())
    store = save(tmp_path, 1, program.saved(state))
    restored = store.restore_latest(program.saved(program.abstract_state))
    assert restored is not None
    again, expected = (host(program.evaluation_params(s)) for s in (program.complete(restored.state, None), state))
    assert again.keys() == expected.keys()
    assert all(np.array_equal(again[path], expected[path]) for path in expected)
    held = host(load_base(tmp_path, program.abstract_params).params)
    assert all(np.array_equal(value, expected[path]) for path, value in held.items())


@pytest.mark.slow
def test_a_checkpoint_of_another_base_is_refused(base_run, lora_run, tmp_path):
    _, _, base_state = base_run
    program, base, _, state = lora_run
    store = save(tmp_path / "run", 1, program.saved(state), base)
    save(tmp_path / "other", 1, jax.tree.map(lambda leaf: leaf + 1, base_state))
    other = load_base(tmp_path / "other", program.abstract_params)
    with pytest.raises(ConfigError, match=rf"trained on base {base.hash} and this run has base {other.hash}"):
        store.restore_latest(program.saved(program.abstract_state), base_hash=other.hash)
    with pytest.raises(ConfigError, match=r"is a finetuned run that kept parameters"):
        load_base(tmp_path / "run" / "checkpoints" / "1", program.abstract_params)


@pytest.mark.slow
def test_a_base_that_is_no_run_or_of_another_model_is_refused(base_run, tmp_path):
    program, workdir, state = base_run
    with pytest.raises(ConfigError, match=r"is no run; expected a work directory"):
        load_base(tmp_path, program.abstract_params)
    (tmp_path / "weights.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds weights of another library's model"):
        load_base(tmp_path, program.abstract_params)
    with pytest.raises(ConfigError, match=r"does not fit this configuration: array ema\.blocks\.mlp"):
        load_base(workdir, build(model_of(ffn_width=64)).abstract_params)
    flat = {
        section: split_tree(state[section], lambda path: path == "grid_embedding")[1] for section in ("ema", "frozen")
    }
    save(tmp_path / "flat", 1, flat)
    with pytest.raises(ConfigError, match=r"has no parameter grid_embedding; the model must be"):
        load_base(tmp_path / "flat", program.abstract_params)


def video_run_of(system, folder, **block):
    """Saves the initial state of a video model with the transformer of ``system``; returns its parameters."""
    layout = LayoutConfig(formulation="video", noisy_first_frame=False)
    backbone = dataclasses.replace(system.backbone, block=dataclasses.replace(system.backbone.block, **block))
    sizes = {"backbone": backbone, "layout": layout, "actions": ActionsConfig(), "objective": ObjectiveConfig()}
    program = build(dataclasses.replace(system, **sizes, train=dataclasses.replace(system.train, seed=7)))
    state = program.init()
    save(folder, 1, state)
    return host(program.evaluation_params(state))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["latent_plan", "fast_wam_libero"])
def test_a_video_run_is_the_base_of_a_systems_video_transformer(name, tmp_path):
    system = load_twin(name)
    given = video_run_of(system, tmp_path)
    fresh = build(system)
    own = host(fresh.evaluation_params(fresh.init()))
    program = build(dataclasses.replace(system, finetune=FinetuneConfig(base=str(tmp_path))))
    started = host(program.evaluation_params(program.init(None, program.load_base())))
    assert started.keys() == own.keys()
    for path, value in started.items():
        wanted = given[path.removeprefix("video.")] if path.startswith("video.") else own[path]
        np.testing.assert_array_equal(value, wanted, err_msg=path)
    same = [path for path in started if path.startswith("video.") and (started[path] == own[path]).all()]
    assert "video.blocks.mlp.up.kernel" not in same  # the two were drawn from other seeds

    kept = FinetuneConfig(base=str(tmp_path), frozen=("*",), trained=("video",))
    with pytest.raises(
        ConfigError, match=r"config\.finetune keeps .* a video model, does not hold: except what is new"
    ):
        build(dataclasses.replace(system, finetune=kept)).load_base()
    tuned = build(dataclasses.replace(system, finetune=dataclasses.replace(kept, frozen=("video",), trained=())))
    base = tuned.load_base()
    state = tuned.saved(tuned.init(None, base))
    assert not state["frozen"]
    assert host(tuned.complete(state, base)["frozen"]).keys() == {n for n in own if n.startswith("video.")}
    video_run_of(system, tmp_path / "wide", ffn_width=96)
    with pytest.raises(ConfigError, match="does not fit this configuration"):
        build(dataclasses.replace(system, finetune=FinetuneConfig(base=str(tmp_path / "wide")))).load_base()


def test_splitting_and_joining_give_the_tree_back():
    tree = {"a": {"b": jnp.zeros(1), "c": {"d": jnp.ones(2)}}, "e": jnp.ones(3)}
    first, second = split_tree(tree, lambda path: path in ("a.b", "e"))
    assert set(flatten_params(first)) == {"a.b", "e"}
    assert set(flatten_params(second)) == {"a.c.d"}
    assert jax.tree.structure(join_trees(first, second)) == jax.tree.structure(tree)


@pytest.mark.slow
def test_eight_devices_train_updates_as_one_does():
    losses = []
    for devices, parallel in ((1, TINY.parallel), (8, ParallelConfig(fsdp=2, tensor=2, context=2))):
        program = program_of(dataclasses.replace(LORA, trained=("video_head",)), parallel=parallel, devices=devices)
        state, metrics = program.init(), {}
        for _ in range(3):
            state, metrics = program.step(state, batch_of(program))
        losses.append((float(metrics["loss/total"]), host(state["params"])))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    for path, value in losses[0][1].items():
        np.testing.assert_allclose(losses[1][1][path], value, atol=2e-4, err_msg=path)
