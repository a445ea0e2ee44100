"""Two gloo processes on the CPU give what one gives: DDP, both kinds of FSDP, and our Trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from transformers import TrainingArguments, set_seed
from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer

from angelshare.student.head import let_loss_run_inside
from angelshare.student.losses import IGNORED
from angelshare.student.settings import OptimizerSettings
from angelshare.student.sharding import whole_weights
from angelshare.student.trainer import StudentTrainer

from .test_head import KD, VOCAB, batch, gradients, loss_inside, olmo

RANKS = 2
"""Each trains on two of the batch's four rows, which have different numbers of targets."""
SIDES = ("ddp", "fsdp1", "fsdp2")


def share_of_mean(model: nn.Module, rows: slice, ranks: int) -> Tensor:
    """Some rows' part of the mean over all targets, as wrappers that average over ranks want it."""
    targets = (batch()["labels"][:, 1:] != IGNORED).sum()
    return loss_inside(model, rows) * ranks / targets


def wrapped(kind: str, model: nn.Module) -> nn.Module:
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp1":
        policy = ModuleWrapPolicy({Olmo2DecoderLayer})
        return FullyShardedDataParallel(
            model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
        )
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def whole(kind: str, model: nn.Module) -> dict[str, Tensor]:
    """Gradients by parameter, gathered from all ranks."""
    if kind == "fsdp1":
        with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
            return whole("ddp", model)
    clean = {
        name.replace("_fsdp_wrapped_module.", "").removeprefix("module."): parameter.grad
        for name, parameter in model.named_parameters()
    }
    return {n: g.full_tensor() if isinstance(g, DTensor) else g.clone() for n, g in clean.items()}


class Rows(Dataset[dict[str, Tensor]]):
    """Twelve rows without a teacher."""

    def __init__(self) -> None:
        inputs = batch()
        self.rows = [
            {name: tensor[i].roll(shift, 0) for name, tensor in inputs.items()}
            for shift in range(3)
            for i in range(4)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


def train(folder: Path, rows_per_pass: int) -> dict[str, Tensor]:
    """The weights after three steps of four rows over all ranks."""
    set_seed(4)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=rows_per_pass,
        learning_rate=1e-2,
        seed=5,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
    )
    trainer = StudentTrainer(
        model=olmo(),
        args=arguments,
        loss=KD,
        vocab_size=VOCAB,
        optimizer=OptimizerSettings(name="adamw", learning_rate=1e-2),
        train_dataset=Rows(),
    )
    trainer.train()
    return whole_weights(trainer.model)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "asked for, unused", "MASTER_PORT": "0"}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    results: dict[str, Any] = {}
    for kind in SIDES:
        inner = olmo(tied=False)
        let_loss_run_inside(inner)
        model = wrapped(kind, inner)
        share_of_mean(model, slice(2 * rank, 2 * rank + 2), RANKS).backward()
        results[kind] = whole(kind, model)
    results["trainer"] = train(Path(folder) / "run", 2)
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder),), nprocs=RANKS)
    results: dict[str, Any] = torch.load(folder / "results.pt")
    return results


@pytest.mark.parametrize("kind", SIDES)
def test_two_ranks_have_the_gradients_of_one(two_ranks: dict[str, Any], kind: str) -> None:
    model = olmo(tied=False)
    let_loss_run_inside(model)
    one = gradients(model, lambda m: share_of_mean(m, slice(None), 1))
    assert two_ranks[kind].keys() == one.keys()
    torch.testing.assert_close(two_ranks[kind], one)


def test_the_trainer_on_two_ranks_ends_with_the_weights_of_one(
    two_ranks: dict[str, Any], tmp_path: Path
) -> None:
    one = train(tmp_path, 4)
    torch.testing.assert_close(two_ranks["trainer"], one, rtol=1e-4, atol=1e-6)
    assert not one["lm_head.weight"].equal(olmo().state_dict()["lm_head.weight"])
