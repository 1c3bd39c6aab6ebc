"""What conf/train.yaml offers: the type and the range of each key of a training, without Lightning or torch.

The parts that a `_target_` makes are checked against their constructors (`vaelab.core.config`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from vaelab.core.types import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Seed


def _with_target(node: dict[str, Any]) -> dict[str, Any]:
    if node and "_target_" not in node:
        raise PydanticCustomError("node", "Input should be a mapping with a _target_")
    return node


Node = Annotated[dict[str, Any], AfterValidator(_with_target)]
"""A mapping with a `_target_`, or an option without content."""
Long = Annotated[int, Field(gt=0, lt=2**53)]
"""A number of steps."""
Endless = Literal[-1]
Batches = NonNegativeInt | Fraction
"""Batches of an epoch: a count, or a fraction of all (1.0)."""
Devices = Literal["auto", -1] | PositiveInt | list[NonNegativeInt] | Annotated[str, Field(pattern=r"^\d+(,\d*)*$")]
Duration = Annotated[str, Field(pattern=r"^\d+:\d\d:\d\d:\d\d$")]


class Run(TypedDict, total=False):
    """The run's folder, and what the program notes of it."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    dir: str
    format: int
    overrides: list[str]
    config_dir: str | None
    found: list[str]


Format = Literal["png", "pdf", "svg"]


class Figures(TypedDict):
    """How figures are drawn, and which of the user's own: each a node that makes one, by its file's name."""

    format: Format | list[Format]
    own: dict[str, Node]


class Training(TypedDict):
    """The keys of conf/train.yaml and of the groups it chooses from."""

    seed: Seed
    test: bool
    report: bool
    figures: dict[str, Any]
    compile: bool
    cuda_graph: bool
    matmul_precision: Literal["highest", "high", "medium"]
    channels_last: bool | None
    lr_factor: dict[str, PositiveFloat]
    checkpoint: Node
    resume: str | None
    run: dict[str, Any]
    sweep: dict[str, str]
    trainer: dict[str, Any]
    callbacks: dict[str, Node | None]
    logger: dict[str, Node | None] | None
    model: Node | None
    dataset: Node
    network: Node
    likelihood: Node
    optimizer: Node
    posterior: Node | None
    prior: Node | None
    condition: Node | None
    codebook: Node | None
    schedule: dict[str, Node] | None
    lr_schedule: Node | None
    averaging: Node | None
    augment: Node | None


class Trainer(TypedDict):
    """Arguments of Lightning's Trainer, but for those that the program gives; null is Lightning's default."""

    _target_: Literal["pytorch_lightning.Trainer"]
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    devices: Devices
    strategy: str | Node
    num_nodes: PositiveInt
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] | None
    max_epochs: Endless | Long | None
    min_epochs: NonNegativeInt | None
    max_steps: Endless | Long
    min_steps: NonNegativeInt | None
    max_time: Duration | None
    limit_train_batches: Batches | None
    limit_val_batches: Batches | None
    limit_test_batches: Batches | None
    limit_predict_batches: Batches | None
    overfit_batches: Batches
    fast_dev_run: bool | NonNegativeInt
    val_check_interval: PositiveInt | Annotated[float, Field(gt=0, le=1)] | None
    check_val_every_n_epoch: PositiveInt | None
    num_sanity_val_steps: Endless | NonNegativeInt
    log_every_n_steps: NonNegativeInt
    enable_checkpointing: bool
    enable_progress_bar: bool
    enable_model_summary: bool
    accumulate_grad_batches: PositiveInt
    gradient_clip_val: NonNegativeFloat | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    deterministic: bool | Literal["warn"] | None
    benchmark: bool | None
    inference_mode: bool
    use_distributed_sampler: bool
    profiler: Literal["simple", "advanced"] | Node | None
    detect_anomaly: bool
    barebones: bool
    plugins: Node | list[Node] | None
    sync_batchnorm: bool
    reload_dataloaders_every_n_epochs: NonNegativeInt
    default_root_dir: str | None
    enable_autolog_hparams: bool
    model_registry: str | None
