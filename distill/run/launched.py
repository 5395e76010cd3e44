"""A run on several processes: what the others do beside the first, and what they cannot share."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import get_object
from omegaconf import DictConfig

from distill import loop
from distill.files.checkpoint import load_checkpoint
from distill.guidance import is_learner
from distill.ranks import Ranks
from distill.run.assembly.assemble import LEARNS, assemble
from distill.run.execute import run
from distill.run.several.amortise import run_library, set_accumulate
from distill.run.several.generator import amortised
from distill.run.several.seeding import several
from distill.run.signals import stop_signals


def run_on(ranks: Ranks, config: DictConfig, library: bool) -> None:
    """Run a configuration of one prompt or one library, on this process alone or on several.

    Args:
        ranks: the processes.
        config: of the run.
        library: it was asked for as that of a library, so another is refused.

    Raises:
        ValueError: something in the configuration is wrong, or cannot be shared, in one line.
        Ended: another process failed.
    """
    check_shared(config, ranks.size)
    if ranks.rank:
        follow(ranks, config)
    elif library or amortised(config):
        run_library(config, ranks=ranks)
    else:
        run(config, ranks=ranks)


def follow(ranks: Ranks, config: DictConfig) -> None:
    """Train beside the first process: from its checkpoint, to where it stops, without writing anything.

    Raises:
        ValueError: the first process's folder is another one here.
    """
    if amortised(config):
        set_accumulate(config, ranks.size)
    ranks.meet()  # what the first one refuses is said before anything is loaded
    job = assemble(config, ranks=ranks)
    state = job.state
    folder, step = ranks.tell()
    if step:
        saved = load_checkpoint(Path(folder) / "checkpoints", job.prior.device)
        if saved is None or saved["step"] != step:
            raise ValueError(
                f"process {ranks.rank} does not find the checkpoint of step {step} in {folder}; all machines must see one folder: "
                "choose one on a file system that they share, with output_dir="
            )
        state.load_state_dict(saved)
    with stop_signals() as asked:
        stop = ranks.heed(asked)
        ranks.begin(state.parameters())
        loop.train(job, lambda *_: stop.is_set())
        ranks.part()


def check_shared(config: DictConfig, processes: int) -> None:
    """Refuse what several processes cannot share.

    Raises:
        ValueError: there is something, in one line.
    """
    if processes == 1:
        return
    if config.prompts is not None and not amortised(config):
        raise ValueError(
            f"prompts= makes an asset of each line, which {processes} processes of a launcher cannot share; start one process for "
            "each part of the file with shard=1/2 and shard=2/2, or hydra/launcher=joblib or submitit_slurm (docs/queues.md)"
        )
    found = [
        ("seeds= and retries=", several(config), "they make several assets; start one process for each seed="),
        ("stages=", bool(config.earlier), "each begins with what the one before wrote; start one process, or make one stage at a time with init="),
        ("view=true", config.view, "a pause would hold up the other processes"),
        ("max_vram=", config.max_vram is not None, "it forecasts one process; choose render.at_once="),
        (f"device={config.device}", config.device not in ("auto", "cpu", "cuda"), "each process takes a GPU of its own, or device=cpu"),
    ]  # fmt: skip
    for name, given, why in found:
        if given:
            raise ValueError(f"{name} does not go with {processes} processes: {why}; leave it out")
    if is_learner(get_object(config.guidance._target_)):
        raise ValueError(LEARNS)
    prompts, views = config.optimiser.accumulate, config.render.batch
    if amortised(config) and (prompts is None or prompts > 1):
        if prompts and prompts % processes:
            raise ValueError(
                f"optimiser.accumulate={prompts} cannot be shared evenly by {processes} processes; choose a multiple of "
                f"{processes}, or leave it out for one each"
            )
    elif views % processes:
        raise ValueError(
            f"render.batch={views} cannot be shared evenly by {processes} processes; choose a multiple of {processes}"
        )
