"""verl's SFT trainer on the CPU:

    VERL_PLATFORM=cpu python -m verl_toolrl.integrations.cpu.sft --config-name toolrl/quickstart_sft key=value ...

`verl.trainer.sft_trainer` cannot run there as it is: it names the CPU twice in the backend of its process group, which
torch refuses (`cpu:gloo,cpu:gloo`), so the group is made here. One process; everything else is verl's.
"""

from __future__ import annotations

import os
import sys

import hydra
import torch
from omegaconf import DictConfig

from verl_toolrl.integrations.cpu import environment

__all__ = ["main"]


@hydra.main(config_path="pkg://verl.trainer.config", config_name="sft_trainer_engine", version_base=None)
def main(config: DictConfig) -> None:
    """Train with the composed configuration."""
    # verl's worker reads what torchrun sets. Nobody connects to the address: the group keeps its store in this process.
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)

    from verl.trainer.sft_trainer import SFTTrainer

    try:
        SFTTrainer(config=config).fit()
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    if any(os.environ.get(name) is None for name in environment.settings()):
        environment.install()  # glibc and OpenMP read it when a process starts
        os.execv(sys.executable, [sys.executable, "-m", "verl_toolrl.integrations.cpu.sft", *sys.argv[1:]])

    import verl  # noqa: F401  (loads our plugin, and with it the search path of the recipes, before Hydra composes)

    main()
