"""Splits weights, gradients and the optimiser's state into a part per process, for models that no device holds."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from vaelab.core.distributed import active, all_sum
from vaelab.core.errors import UserError
from vaelab.core.renames import upgrade_tensors
from vaelab.core.types import PositiveInt
from vaelab.training.loop import OpenFSDP

if TYPE_CHECKING:
    from vaelab.models import Model


class FullySharded(OpenFSDP):
    """A strategy: Lightning's FSDP, with checkpoints like every other run's: one file with whole tensors.

    Unlike Lightning's own it can be rehearsed on processors.

    min_weights: a part of the model with so many weights is gathered and freed by itself.
    """

    def __init__(self, min_weights: PositiveInt):
        from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

        policy = partial(size_based_auto_wrap_policy, min_num_params=min_weights)
        super().__init__(auto_wrap_policy=policy, state_dict_type="full")

    def check(self, trainer: pl.Trainer, model: Model) -> None:
        """Raises UserError for what a model in parts cannot do."""
        if not trainer.checkpoint_callbacks:
            raise UserError("accelerator=fsdp: trainer.enable_checkpointing=true is needed to put the model together")
        if model.lr_factors:
            raise UserError("accelerator=fsdp: weights are gathered without regard to their part: leave out lr_factor")
        if model.own_options:
            name = next(iter(model.own_options))
            raise UserError(
                f"accelerator=fsdp: weights are gathered without regard to their part, and {name} has its own options"
            )
        if isinstance(getattr(getattr(model, "codebook", None), "codes", None), nn.Parameter):
            raise UserError(
                "accelerator=fsdp: codebook=gradient moves single codes, which are in parts: use codebook=ema"
            )

    def wrap(self, model: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import FullyShardedDataParallel

        single = [p for p in model.parameters() if p.ndim == 0]  # FSDP takes no scalars: each process has them
        for parameter in single:
            parameter.data = parameter.data.to(self.root_device)
            parameter.register_post_accumulate_grad_hook(_average)
        self.kwargs["ignored_states"] = single
        if self.root_device.type != "cpu":
            return super().wrap(model)
        # torch takes a processor if it is named, and Lightning names devices by number
        return FullyShardedDataParallel(model, device_id=self.root_device, **self.kwargs)

    def _whole(self, first_alone: bool) -> Any:
        """Returns a context in which model and optimiser are put together, in the first process alone or in all."""
        from torch.distributed.fsdp import (
            FullOptimStateDictConfig,
            FullStateDictConfig,
            FullyShardedDataParallel,
            StateDictType,
        )

        # "offloading" what is on the processor copies nothing, and torch gathers the next into the same memory
        elsewhere = self.root_device.type != "cpu"
        return FullyShardedDataParallel.state_dict_type(
            self.model,  # type: ignore[arg-type]
            StateDictType.FULL_STATE_DICT,
            FullStateDictConfig(rank0_only=first_alone),
            FullOptimStateDictConfig(offload_to_cpu=elsewhere, rank0_only=first_alone),
        )

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType

        assert self.model is not None
        with self._whole(first_alone=True):
            state = FullyShardedDataParallel.optim_state_dict(self.model, getattr(optimizer, "optimizer", optimizer))
            if self.global_rank:
                return state
            return FullyShardedDataParallel.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_ID, self.model)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads a checkpoint also where the optimiser keeps nothing (SGD without momentum); Lightning fails there."""
        from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType

        # mapped: the processes of a machine share what they read
        checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True, mmap=True)
        assert self.model is not None
        with self._whole(first_alone=False):
            self.model.load_state_dict(upgrade_tensors(checkpoint.pop("state_dict")))
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                if state["state"]:
                    by_name = OptimStateKeyType.PARAM_NAME
                    state = FullyShardedDataParallel.rekey_optim_state_dict(state, by_name, self.model)
                    parts = FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, state)
                    optimizer.load_state_dict(parts)
        return checkpoint


def _average(parameter: Tensor) -> None:
    """Makes a gradient the mean over processes; what had been added up before is one already."""
    if parameter.grad is not None and active():
        all_sum(parameter.grad).div_(dist.get_world_size())
