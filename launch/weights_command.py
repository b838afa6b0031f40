"""``wamjax weights``: checkpoints of other libraries in, out, and compared with what their own code computes.

Owns the flags and the printed tables. Reading, writing and comparing are in ``wamjax.weights``.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from data_pipelines.sources.remote import refuse_address
from launch import distributed
from launch.command import Command
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError, DataError
from wamjax.parallel.mesh import build_mesh
from wamjax.weights.exchange import export_weights, import_weights, load_reference, read_reference_config
from wamjax.weights.initialise import Initialise
from wamjax.weights.kinds.registry import find_kind
from wamjax.weights.tensors import TensorFolder
from wamjax.weights.verify import Row, require_outputs, verify

DIFFERENT = 1  # exit status: outputs or gradients beyond the limit
_RECORDED = ("inputs.npz", "outputs.npz")
_GRADIENTS = "grads.safetensors"


def _define_kind_flag() -> None:
    flags.DEFINE_string(
        "kind",
        None,
        "Model class, where config.json does not say it, as WanTransformer3DModel; or a system with action modules.",
    )


def _define_import_flags() -> None:
    _define_kind_flag()
    flags.DEFINE_string("out", None, "New folder for the imported weights.", required=True)
    flags.DEFINE_enum(
        "dtype", "preserve", ["preserve", "float32", "bfloat16"], "Keep the dtypes of the source, or cast."
    )
    flags.DEFINE_multi_string(
        "ignore", [], "Pattern (*) of tensors that may be left out; they are named in weights.json."
    )
    flags.DEFINE_boolean(
        "initialise_missing", False, "Make the action modules that a plain backbone lacks, by the recipe of --kind."
    )
    flags.DEFINE_multi_string("option", [], "Size of what is made: action_dim=14. For --initialise_missing.")
    flags.DEFINE_integer("seed", 0, "Of what is drawn. For --initialise_missing.", lower_bound=0)
    distributed.define_device_flags()


def _run_import(argv: list[str]) -> int:
    """Imports a checkpoint."""
    source, values = _one_path(argv, "import"), flags.FLAGS
    refuse_address(values.out, "--out")
    mesh, started = _mesh(values.cpu_devices), time.perf_counter()
    loaded = import_weights(
        source,
        Path(values.out),
        mesh,
        kind_name=values.kind,
        dtype=values.dtype,
        ignore=values.ignore,
        initialise=_initialise(values.initialise_missing, values.option, values.seed),
    )
    num_bytes = sum(tensor.num_bytes for tensor in loaded.folder.values())
    num_params = sum(leaf.size for leaf in jax.tree.leaves(loaded.params))
    print(f"{loaded.kind.class_name}, {loaded.naming} names: {loaded.comparison.describe()}")
    for line in _ignored(loaded.kind.ignored, loaded.comparison.ignored):
        print(f"  ignored: {line}")
    for name, how in loaded.made.items():
        print(f"  made: {name}, {how}")
    print(
        f"{num_params:,} parameters ({num_bytes / 1e9:.2f} GB) imported into {values.out} in "
        f"{time.perf_counter() - started:.1f} s"
    )
    return 0


def _ignored(reasons: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Returns a line per pattern that says why its tensors are not read, and one per tensor that the user named."""
    lines, left = [], list(names)
    for pattern, reason in reasons.items():
        matching = fnmatch.filter(left, pattern)
        left = [name for name in left if name not in set(matching)]
        if matching:
            lines.append(f"{pattern} ({len(matching)}): {reason}")
    return lines + left


def _initialise(is_wanted: bool, options: list[str], seed: int) -> Initialise | None:
    """Returns the consent to make parameters that the flags give.

    Raises:
      ConfigError: An option is not ``name=integer``, or comes without the consent.
    """
    given = {}
    for option in options:
        name, _, value = option.partition("=")
        if not value.isdecimal():
            raise ConfigError(f"--option={option}; expected a name and a whole number, as in --option=action_dim=14")
        given[name] = int(value)
    if given and not is_wanted:
        raise ConfigError(f"--option={options[0]} says how something is made; it needs --initialise_missing")
    return Initialise(seed=seed, options=given) if is_wanted else None


def _define_export_flags() -> None:
    flags.DEFINE_string("out", None, "Folder for config.json and safetensors.", required=True)
    flags.DEFINE_string("naming", None, "Whose tensor names to write: diffusers or original; as imported by default.")
    flags.DEFINE_string("lora", None, "Adapter file whose low-rank updates are added to the weights.")
    flags.DEFINE_float("max_file_gb", 5.0, "A file is closed before it would grow beyond this (1 GB = 1e9 bytes).")
    distributed.define_device_flags()


def _run_export(argv: list[str]) -> int:
    """Exports a folder of weights."""
    directory, values = _one_path(argv, "export"), flags.FLAGS
    refuse_address(values.out, "--out")
    files = export_weights(
        directory,
        Path(values.out),
        _mesh(values.cpu_devices),
        naming=values.naming,
        lora=Path(values.lora) if values.lora else None,
        max_file_bytes=int(values.max_file_gb * 1e9),
    )
    for path in files:
        print(f"{path} ({path.stat().st_size / 1e9:.2f} GB)")
    return 0


def _define_verify_flags() -> None:
    _define_kind_flag()
    flags.DEFINE_float("atol", 1e-4, "Largest absolute error of an output or the loss.")
    flags.DEFINE_float("gradient_rtol", 1e-3, "Largest error of a gradient, relative to its tensor's largest value.")
    distributed.define_device_flags()


def _run_verify(argv: list[str]) -> int:
    """Compares a checkpoint's outputs and gradients with recorded ones."""
    directory, values = _one_path(argv, "verify"), flags.FLAGS
    if not directory.is_dir():
        raise DataError(f"{directory} is not a folder; expected config.json, *.safetensors, {' and '.join(_RECORDED)}")
    require_outputs(find_kind(read_reference_config(directory), values.kind))  # before anything large is read
    inputs, outputs = (_read_arrays(directory / name) for name in _RECORDED)
    weights = [path for path in sorted(directory.glob("*.safetensors")) if path.name != _GRADIENTS]
    loaded = load_reference(
        directory,
        _mesh(values.cpu_devices),
        kind_name=values.kind,
        dtype="float32",
        folder=TensorFolder(directory, weights),
    )
    gradients = None
    if (directory / _GRADIENTS).exists():
        stored = TensorFolder(directory / _GRADIENTS)
        gradients = {name: stored.view(name) for name in stored}
    rows = verify(
        loaded.kind,
        loaded.config,
        loaded.params,
        inputs,
        outputs,
        gradients,
        naming=loaded.naming,
        atol=values.atol,
        gradient_rtol=values.gradient_rtol,
    )
    print(f"{loaded.kind.class_name}, {loaded.naming} names: {loaded.comparison.describe()}")
    print(_table(rows))
    wrong = [row for row in rows if not row.is_close]
    if wrong:
        print(f"{len(wrong)} of {len(rows)} beyond the limit, first {wrong[0].name}")
        return DIFFERENT
    print(f"all {len(rows)} within --atol={values.atol:g} (gradients: --gradient_rtol={values.gradient_rtol:g})")
    return 0


SUBCOMMANDS = {
    "import": Command(
        summary="read a diffusers, transformers or original checkpoint into a folder of weights",
        description="Usage: wamjax weights import SRC --out=DIR\n\nSRC holds config.json and safetensors (one file, or "
        "several with an index). Every tensor must fit a parameter and every parameter must get a tensor.\n\n"
        "--kind may also name a system with action modules (dreamzero, lingbot_va, fast_wam). Where SRC is only its "
        "backbone, --initialise_missing makes those modules by the system's recipe; each is printed and in "
        "weights.json.",
        define_flags=_define_import_flags,
        run=_run_import,
    ),
    "export": Command(
        summary="write a folder of weights as a diffusers or original checkpoint",
        description="Usage: wamjax weights export DIR --out=DEST [--naming=original] [--lora=FILE]\n\nThe tensors are "
        "byte for byte those that were imported; an adapter's updates are added to the kernels they are of.",
        define_flags=_define_export_flags,
        run=_run_export,
    ),
    "verify": Command(
        summary="run a checkpoint on recorded inputs and compare outputs and gradients",
        description="Usage: wamjax weights verify DIR\n\nDIR holds config.json, *.safetensors, inputs.npz (by the "
        "reference's argument names), outputs.npz and, if gradients are compared, grads.safetensors. Exit status 1 "
        "when something is beyond the limit.",
        define_flags=_define_verify_flags,
        run=_run_verify,
    ),
}


def _table(rows: list[Row]) -> str:
    """Returns one line per compared array; the worst gradients only, where there are many."""
    gradients = sorted((row for row in rows if row.name.startswith("grad ")), key=lambda row: -row.relative_error)
    shown = [row for row in rows if not row.name.startswith("grad ")] + gradients
    width = max(len(row.name) for row in shown)
    lines = [f"{'array':{width}}  {'max error':>10}  {'relative':>10}"]
    for row in shown:
        mark = "" if row.is_close else "  BEYOND THE LIMIT"
        lines.append(f"{row.name:{width}}  {row.max_error:10.2e}  {row.relative_error:10.2e}{mark}")
    return "\n".join(lines)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected recorded arrays (see wamjax weights verify --help)") from None
    except Exception as error:  # zipfile, zlib and numpy each raise their own on a damaged file
        raise DataError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def _one_path(argv: list[str], verb: str) -> Path:
    if len(argv) != 1:
        raise ConfigError(f"wamjax weights {verb} takes one path, got {len(argv)} (see wamjax weights {verb} --help)")
    return Path(argv[0])


def _mesh(cpu_devices: int | None) -> Mesh:
    """Returns the mesh weights are loaded on: all devices in one ``fsdp`` axis."""
    distributed.start_devices(cpu_devices)
    return build_mesh(ParallelConfig(data=1, fsdp=-1, context=1, tensor=1))
