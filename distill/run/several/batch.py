"""One asset per prompt of a file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from distill.contracts import Prior
from distill.devices import pick_device
from distill.embedded.vocabulary import of_prior
from distill.files.errors import line_of
from distill.files.lock import InUse, hold
from distill.live.desk import Desk
from distill.live.server import watched
from distill.run.assembly.conditioning import keeps, texts_of
from distill.run.assembly.prior import check_prior, check_prompt, open_prior
from distill.run.config.overrides import literal
from distill.run.execute import carry_out
from distill.run.folder import contents
from distill.run.folder.failures import noting
from distill.run.folder.folders import check_root, claim, folder_name, is_finished
from distill.run.folder.stored import OtherLayout, finished_otherwise
from distill.run.folder.table import BUSY, SHOWN, Row, tell
from distill.run.journal import Interrupted
from distill.run.several.judge import check_judge
from distill.run.several.queue import Part, Queue, by_prior, table_of
from distill.run.several.seeding import several
from distill.run.several.seeds import run_seeds
from distill.run.several.staging import begin, check_priors

log = logging.getLogger(__name__)

#: Texts that a queue embeds at once: 1 GiB of those of Stable Diffusion 2 in half precision would be 6,800.
AT_ONCE = 2048


def run_prompts(queue: Queue) -> dict[str, str]:
    """Make one asset per prompt of a queue, loading each prior once.

    Finished ones are skipped, unfinished ones are resumed, and a failure does not stop the rest. Those that another process is at
    work on come last, see ``make_each``.

    Args:
        queue: from ``compose_queue``.

    Returns:
        Prompt to ``finished``, ``skipped``, ``table.BUSY``, or the error.

    Raises:
        ValueError: the folder cannot be used, or a part of the options does not work on this machine.
    """
    config = queue.config
    root = check_root(config)
    if not queue.parts:
        log.info("shard=%s has none of the %d prompts of %s", config.shard, queue.listed, config.prompts)
        tell([], table_of(config))
        return {}
    rows, left = finished_ones(queue, root)
    if rows:
        log.info(
            "%d of %d prompts were finished before", len(rows), sum(len(one.prompts) for one in queue.parts)
        )
    try:
        if left:
            make_all(left, root, rows)
    finally:
        tell(rows, table_of(config))
    return {row.prompt: row.state for row in rows}


def finished_ones(queue: Queue, root: Path) -> tuple[list[Row], list[Part]]:
    """Rows of the prompts that are finished in a folder, and the parts with those that are not."""
    rows, left = list[Row](), list[Part]()
    for part in queue.parts:
        done = finished_before(part.config, root)
        folders = {prompt: done(prompt) for prompt in part.prompts}
        rows += [Row(prompt, "skipped", str(folder), 0.0) for prompt, folder in folders.items() if folder]
        if wanted := [prompt for prompt, folder in folders.items() if folder is None]:
            left.append(part._replace(prompts=wanted))
    return rows, left


def make_all(parts: Sequence[Part], root: Path, rows: list[Row]) -> None:
    """Make the assets of parts of a queue one after another, after a look at all; appends a row for each as it ends.

    Raises:
        ValueError: a part of the options does not work on this machine.
    """
    device = pick_device(parts[0].config.device)
    check_parts(parts, device)
    with watched(parts[0].config) as desk:
        for together in by_prior(parts):
            prior = open_prior(together[0].config, device)
            for config, prompts in together:
                embed_first(config, prompts, prior)
            wanted = [(config, prompt) for config, prompts in together for prompt in prompts]
            make_each(wanted, partial(make_one, root=root, prior=prior, desk=desk), rows)
            del prior  # before the next is loaded


def make_each(
    wanted: Sequence[tuple[DictConfig, str]], make: Callable[[DictConfig, str], Row], rows: list[Row]
) -> None:
    """Make prompts of one prior in turn; those that were in other processes' hands again, as long as one of them has become free.

    A process that was killed leaves its prompt to those that are still at work on the list.

    Args:
        wanted: configurations and prompts.
        make: makes one, see ``make_one``.
        rows: gains one for each prompt; of those that are in other processes' hands, at the end.
    """
    busy = list[Row]()
    try:
        while wanted:
            left = list[tuple[DictConfig, str]]()
            for config, prompt in wanted:
                row = make(config, prompt)
                busy = [each for each in busy if each.prompt != prompt]
                if row.state == BUSY:
                    busy.append(row)
                    left.append((config, prompt))
                else:
                    rows.append(row)
            if len(left) == len(wanted):
                break
            wanted = left
    finally:  # also of an interrupted queue
        rows += busy


def check_parts(parts: Sequence[Part], device: torch.device) -> None:
    """Check the priors and judges of a queue's parts, and report how their prompts are read, before anything is loaded.

    Raises:
        ValueError: a prior or a judge cannot be used.
    """
    for config, _ in parts:
        check_prior(config, device)
        if config.earlier:
            check_priors(config, device)
        check_judge(config)
    for config, prompts in parts:
        say_first(config, prompts)


def finished_before(config: DictConfig, root: Path) -> Callable[[str], Path | None]:
    """Return what gives a prompt's folder if this very run is finished in it, at the cost of reading one small file.

    It compares the text of ``config.yaml``, of which only the first entry, the prompt, differs within a queue; who gets None
    looks closely, as ``claim`` does.
    """
    first, given = OmegaConf.to_yaml({"prompt": "x"}), contents.contents(config)
    whole = OmegaConf.to_yaml(_one(config, "x"))
    assert whole.startswith(first)

    def folder_of(prompt: str) -> Path | None:
        folder = root / folder_name(prompt)
        if not is_finished(folder):
            return None
        wanted = OmegaConf.to_yaml({"prompt": literal(prompt)}) + whole[len(first) :]
        try:
            same = (folder / "config.yaml").read_text("utf-8") == wanted
            return folder if same and (not given or contents.kept(folder) == given) else None
        except (OSError, UnicodeDecodeError):
            return None

    return folder_of


def say_first(config: DictConfig, wanted: Sequence[str]) -> None:
    """Report for every prompt of a queue how it is read, or that it will be refused, before anything is loaded.

    The source prompt, which all runs share, comes first and once.
    """
    if of_prior(config.prior) is None:
        return  # any prompt is taken as it is, and the judge was looked at
    said, shared = list[str](), config.source_prompt
    for one in _each(config, [*filter(None, [shared]), *wanted]):
        one.source_prompt = ""
        try:
            taken = check_prompt(one) if one.prompt == shared else check_one(one)
        except ValueError as error:
            taken = f"{one.prompt}: will be refused: {error}"
        said += [taken] if taken else []
    for taken in said[:SHOWN]:
        log.warning("%s", taken)
    if len(said) > SHOWN:
        log.warning("... and %d more prompts, each reported in its own run", len(said) - SHOWN)


def check_one(one: DictConfig) -> str:
    """Check a prompt against the prior's words and the judge's; returns how it is read.

    Raises:
        ValueError: one of them does not know it.
    """
    said = check_prompt(one)
    check_judge(one)
    return said


def embed_first(config: DictConfig, wanted: Sequence[str], prior: Prior) -> None:
    """Embed the prompts of all runs of a queue at once, so that large text encoders are loaded once; they are kept by the prior.

    Priors with small encoders that stay in memory embed each prompt in its own run. A prompt that cannot be embedded fails in its
    own run and does not affect the others. At most ``AT_ONCE`` texts have their embeddings in memory at a time.
    """
    if not keeps(prior):
        return
    texts = dict[str, None]()
    for one in _each(config, wanted):
        try:
            check_one(one)
            texts |= dict.fromkeys(texts_of(one, prior))
        except (ValueError, OSError, RuntimeError) as error:
            log.debug("%s is not embedded now: %s", one.prompt, error)
    listed = list(texts)
    for start in range(0, len(listed), AT_ONCE):
        try:
            prior.embed(listed[start : start + AT_ONCE])
        except (ValueError, OSError, RuntimeError) as error:
            log.debug("these prompts are embedded run by run: %s", error)


def _each(config: DictConfig, prompts: Sequence[str]) -> Iterator[DictConfig]:
    """One configuration, which has one prompt after the other: to compose it takes longer than to look at it."""
    one = _one(config, "x")
    for prompt in prompts:
        one.prompt = literal(prompt)
        yield one


def _one(config: DictConfig, prompt: str) -> DictConfig:
    """The configuration of one run of a queue."""
    changes: Mapping[str, Any] = {
        "prompt": literal(prompt),
        "prompts": None,
        "shard": None,
        "output_dir": None,
        "resume": True,
    }
    one = OmegaConf.merge(config, OmegaConf.create(dict(changes)))
    assert isinstance(one, DictConfig)
    return one


def make_one(config: DictConfig, prompt: str, root: Path, prior: Prior, desk: Desk | None = None) -> Row:
    """Make the asset of one prompt of a queue, for custom schedulers such as ``examples/queues/ray_prompts.py``.

    Args:
        config: of a part of the queue, from ``compose_queue``.
        prompt: one of its prompts.
        root: the folder for all assets' folders, on a file system that all workers share.
        prior: of the configuration, loaded by ``open_prior``.
        desk: of the page that shows the run, if one does.

    Returns:
        What became of it: a finished one is skipped, and one that another process is at work on is left to it.
    """
    started = time.perf_counter()
    state, folder = _run_one(config, prompt, root, prior, desk)
    return Row(prompt, state, folder, round(time.perf_counter() - started, 1))


def _run_one(config: DictConfig, prompt: str, root: Path, prior: Prior, desk: Desk | None) -> tuple[str, str]:
    folder: Path | str = ""
    one = _one(config, prompt)
    if desk:
        desk.say("loading")
    try:
        check_one(one)
        folder = claim(one, root)
        with hold(folder):
            if is_finished(folder):
                return _skipped(prompt, folder, one)
            one.output_dir = literal(str(folder))
            if several(one):
                run_seeds(one, folder, prior, carry_out, desk)
            else:
                with noting(one, folder):
                    job = begin(one, prior)
                    carry_out(one, folder, job, time.perf_counter(), desk)
    except InUse as busy:
        if busy.folder == folder:  # another process makes this very prompt
            log.info("%s: %s", prompt, busy)
            return BUSY, str(folder)
        return _failed(prompt, busy, folder)
    except OtherLayout as other:
        if is_finished(other.folder):
            return _skipped(prompt, other.folder, one)
        return _failed(prompt, other, other.folder)
    except Interrupted:
        raise
    except Exception as error:  # a custom part fails in any way
        if not isinstance(error, (ValueError, OSError, RuntimeError)):
            log.error("%s: where it failed", prompt, exc_info=error)
        return _failed(prompt, error, folder)
    return "finished", str(folder)


def _skipped(prompt: str, folder: Path, one: DictConfig) -> tuple[str, str]:
    log.info("%s: finished before, in %s", prompt, folder)
    if said := finished_otherwise(folder, one):
        log.warning("%s: %s", prompt, said)
    return "skipped", str(folder)


def _failed(prompt: str, error: BaseException, folder: Path | str) -> tuple[str, str]:
    reason = line_of(error)
    log.error("%s: %s", prompt, reason)
    return reason, str(folder)
