"""Running a comparison: one cell per method, prompt and seed, each kept as it is finished."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distill.contracts import Prior
from distill.devices import pick_device
from distill.files.atomic import write_atomic
from distill.files.lines import finite, json_of
from distill.files.paths import user_path
from distill.lab.comparison.cell import run_cell
from distill.lab.comparison.checks import check_cells, check_counts
from distill.lab.comparison.cost import compose, few_steps, measure_cost
from distill.lab.comparison.counted import Counted
from distill.lab.comparison.given import PriorOf, prior_code, prior_name
from distill.lab.comparison.methods import METHODS, PROMPTS
from distill.lab.comparison.records import (
    COSTS,
    Cell,
    costs_in,
    is_cost_of,
    judge_name,
    read_record,
)
from distill.lab.truth import SHAPES, Source, check, check_meant, judge_folder, judge_of, origin
from distill.priors import load_prior
from distill.run.assembly.prior import check_loaded
from distill.run.config.plugins import USED, code_of, features_of
from distill.run.journal import Interrupted
from distill.run.several.seeding import several
from distill.run.signals import stop_signals
from distill.wording import counted

log = logging.getLogger(__name__)


def compare(
    methods: Mapping[str, Mapping[str, Any]] | None = None,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = (0, 1),
    *,
    output_dir: str | Path,
    prior: Prior | PriorOf | None = None,
    iterations: int = 400,
    budget: str = "steps",
    measure_every: int = 50,
    part: tuple[int, int] = (1, 1),
    source: Source | None = None,
    **options: Any,
) -> Path:
    """Make and measure every cell, then write the report on what is there; rerun to continue where it stopped.

    Args:
        methods: options of ``distill.generate`` by a name of one's choice, which is that of a folder; ``METHODS`` by default.
        prompts: of the embedded world, or names of things with a colour or without.
        seeds: of each.
        output_dir: where cells, ``results.csv``, ``curves.csv``, ``claims.csv``, ``costs.json``, ``grid.png`` and
            ``report.html`` go.
        prior: a loaded prior shared by all cells, or a function that makes one for a prompt, such as
            ``distill.embedded.exact.exact_prior``; by default the bundled one that knows the prompts.
        iterations: of each cell, or with ``budget="calls"`` of the first method's: the others get as many
            as make the same number of network evaluations.
        budget: ``steps`` or ``calls``.
        measure_every: steps between two points of the curves; measuring does not count as time.
        part: ``(k, n)`` makes only the k-th of n shares of the cells, for n processes with one folder.
        source: where the truths of things come from, a ``distill.lab.truth.Source``; by default they have none, and what
            needs one is left out.
        **options: for all cells.

    Returns:
        The report's path. Of a cell with several particles, the first one is measured.

    Raises:
        ValueError: an option is wrong, or cells in ``output_dir`` were made with other ones, with another prior, or before the code of a
            loss or another part, or of what it uses, was changed, in one line. What earlier versions did not record is not compared.
        Interrupted: a signal asked to stop; what is finished is kept.
    """
    from distill.lab.comparison.report import write_report

    methods = METHODS if methods is None else methods
    check_cells(methods, prompts, seeds)
    check_counts(iterations=iterations, measure_every=measure_every)
    check_asked(prior, budget, part)
    for wanted in (options, *methods.values()):
        check_own(wanted)
    settings = {name: {"iterations": iterations, **options, **wanted} for name, wanted in methods.items()}
    code = dict[str, dict[str, str]]()
    for name, wanted in settings.items():
        check_measurable(config := compose(wanted, prompts[0], seeds[0]))
        code[name] = code_of(config) | prior_code(prior)
    root, source = user_path(output_dir), source or SHAPES
    judge, name_of_prior = judge_of(source, prompts), prior_name(prior, prompts)
    check(prompts, source, judge)
    check_meant(prompts, name_of_prior)
    # Loaded once there is something to make.
    shipped = cache(
        partial(load_prior, name_of_prior, device=pick_device(str(options.get("device", "auto"))))
    )
    prior_of = counting(prior or (lambda prompt: shipped()))
    measured_by = judge_name(judge_folder(source, prompts))
    made_with = {"prior": name_of_prior, "measure_every": measure_every, "judge": measured_by}
    cells = [Cell(name, prompt, seed) for prompt in prompts for seed in seeds for name in settings]
    if budget == "calls":
        equal_calls(settings, prompts[0], prior_of(prompts[0]))
    made_so = {prompt: {**made_with, "truth": origin(prompt, source)} for prompt in dict.fromkeys(prompts)}
    mine = unfinished(cells, settings, made_so, code, root, part)
    with stop_signals() as stop:
        for done, cell in enumerate(mine, start=1):
            folder, model = cell.folder(root), prior_of(cell.prompt)
            record = run_cell(cell, settings[cell.method], model, judge, folder, measure_every, stop, source)
            if made := "final" in record:
                known = {**made_so[cell.prompt], "code": code[cell.method]}
                write_atomic(folder / "cell.json", json_of(record | known))
                said = record["error"] or in_short(record["final"])
                log.info("%d of %d: %s, %s, seed %d: %s", done, len(mine), *vars(cell).values(), said)
            if stop.is_set():
                raise Interrupted(
                    f"stopped after {done - (not made)} of {len(mine)} cells; run again to continue"
                )
    records = records_of(cells, root, part)
    if prior is None and len(records) == len(cells):
        measure_costs(root, settings, prompts[0])
    return write_report(root, records)


def unfinished(
    cells: Sequence[Cell],
    settings: Mapping[str, Mapping[str, Any]],
    made_so: Mapping[str, Mapping[str, Any]],
    code: Mapping[str, Mapping[str, str]],
    root: Path,
    part: tuple[int, int],
) -> list[Cell]:
    """The cells of a share that are not finished; looks at all of them, so that one of other options is told before any is made.

    Raises:
        ValueError: one was finished with other options, see ``finished``.
    """
    left = [
        cell
        for cell in cells
        if not finished(
            cell.folder(root), {"options": settings[cell.method], **made_so[cell.prompt]}, code[cell.method]
        )
    ]
    number, parts = part
    return [cell for cell in cells[number - 1 :: parts] if cell in left]


def records_of(cells: Sequence[Cell], root: Path, part: tuple[int, int]) -> list[dict[str, Any]]:
    """The records of those cells that are finished, in their order.

    Raises:
        ValueError: there are none, since this share has no cells and the others have not begun.
    """
    paths = [cell.folder(root) / "cell.json" for cell in cells]
    if not (there := [path for path in paths if path.exists()]):
        raise ValueError(
            f"nothing is finished in {root} yet, and the share {part[0]}/{part[1]} of {counted(len(cells), 'cell')} has none to make; run "
            "the other shares first, or divide it into fewer"
        )
    return [read_record(path) for path in there]


def check_asked(prior: object, budget: str, part: tuple[int, int]) -> None:
    """Refuse a prior's name in place of a prior, an unknown budget, and a share of the cells that is none."""
    if isinstance(prior, str):
        raise ValueError(f"prior must be a loaded one, got {prior!r}; give distill.load_prior({prior!r})")
    if budget not in ("steps", "calls"):
        raise ValueError(f"budget must be steps or calls, got {budget!r}")
    if not (
        isinstance(part, tuple) and len(part) == 2 and all(isinstance(each, int) for each in part)
    ) or not (1 <= part[0] <= part[1]):
        raise ValueError(f"part must be (k, n) with 1 <= k <= n, got {part!r}")


def in_short(final: Mapping[str, Any]) -> str:
    """A cell's figures for the log."""
    iou = "no truth to measure the shape against" if final["iou"] is None else f"IoU {final['iou']:.2f}"
    several = (final["variants"] or 1) > 1
    return f"R {final['r_precision']:.2f}, {iou}" + (
        f", nearest to variant {final['variant']} of {final['variants']}" if several else ""
    )


def counting(prior: Prior | PriorOf) -> Callable[[str], Counted]:
    """Return what gives the prior of a prompt's cells, its calls counted; the same for all where one is shared.

    One that is made for a prompt takes seconds to make, and a prompt's cells follow each other: it is kept until the next prompt.
    """
    if isinstance(prior, Prior):
        shared = Counted(prior)
        return lambda prompt: shared
    make = prior
    return lru_cache(maxsize=1)(lambda prompt: Counted(make(prompt)))


#: What a message says of an option that a method does not set.
UNSET = "left out"
#: Options that are a comparison's own, and what says them.
OWN = {
    "prompt": "prompts", "prompts": "prompts", "shard": "part", "seed": "seeds", "seeds": "seeds", "output_dir": "output_dir",
    "resume": "running it again",
}  # fmt: skip


def check_own(options: Mapping[str, Any]) -> None:
    """Refuse options that would make a cell another one than it is called.

    Raises:
        ValueError: there is one.
    """
    for name in options:
        if name in OWN:
            raise ValueError(
                f"{name} is no option of a method, or of all cells: in a comparison, {OWN[name]} says it; leave it out"
            )


def check_measurable(config: DictConfig) -> None:
    """Refuse what a comparison cannot measure, before anything is loaded.

    Raises:
        ValueError: the scene has no shape, a cell would have several runs, or options say how a prior is loaded, which the cells share.
    """
    check_loaded(config)
    if config.earlier or several(config):
        what = "stages=" if config.earlier else "retries="
        raise ValueError(f"a comparison makes one run of each cell, and {what} makes several; leave it out")
    if "volume" not in features_of(config):
        raise ValueError(
            "a comparison measures shapes, and this scene has none; choose one that fills space, such as scene=hash_grid"
        )


def measure_costs(root: Path, settings: Mapping[str, Mapping[str, Any]], prompt: str) -> None:
    """Write ``costs.json``: what a step of each method costs and the options that it has, measured one after the other.

    What is there is measured again where it is of other options, see ``is_cost_of``; the costs of other methods stay.
    """
    known = costs_in(root)
    for name, wanted in settings.items():
        if name in known and is_cost_of(known[name], wanted):
            continue
        try:
            known[name] = {**measure_cost(wanted, prompt), "options": finite(wanted)}
        except (
            RuntimeError
        ) as error:  # a new process does not know the parts that the script itself registers
            log.warning("%s: %s", name, error)
            continue
        write_atomic(root / COSTS, json.dumps(known, indent=2, allow_nan=False) + "\n")


def finished(folder: Path, wanted: Mapping[str, Any], code: Mapping[str, str]) -> bool:
    """Tell whether a cell was finished with these options, this prior, the same number of points and the same code.

    Raises:
        ValueError: it was finished with others.
    """
    path = folder / "cell.json"
    if not path.exists():
        return False
    before, now = json.loads(path.read_text()), finite(wanted)
    pairs = {name: (before.get(name, UNSET), now[name]) for name in now if name != "options"}
    options, own = before["options"], now["options"]
    pairs |= {name: (options.get(name, UNSET), own.get(name, UNSET)) for name in {**own, **options}}
    for name, (was, value) in pairs.items():
        if was != value:
            raise ValueError(f"{folder} was made with {name} {was}, not {value}; choose another output_dir")
    changed = [name for name, said in before.get("code", code).items() if code.get(name) != said]
    if changed:
        raise ValueError(f"{folder} was made {told_of(changed[0], options, now)}; choose another output_dir")
    return True


def told_of(changed: str, options: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what is not as it was when a cell was finished: an entry of its code."""
    group = changed.removesuffix(USED)
    if group == "prior":
        return f"with another prior that is called {now['prior']}, too"
    part = options.get(group, group)
    return f"before the code of {part}{' or of what it uses' if group != changed else ''} was changed"


def equal_calls(settings: Mapping[str, dict[str, Any]], prompt: str, prior: Counted) -> None:
    """Give each method as many iterations as make the network evaluations of the first one's, in place."""
    costs = {name: calls_per_step(wanted, prompt, prior) for name, wanted in settings.items()}
    first = next(iter(settings))
    calls = settings[first]["iterations"] * costs[first]
    for name, cost in costs.items():
        settings[name]["iterations"] = max(1, round(calls / cost))


def calls_per_step(wanted: Mapping[str, Any], prompt: str, prior: Counted) -> float:
    """Pictures that the prior's network is asked about in a step: the mean of the first, middle and last one."""
    config, before = compose(wanted, prompt, 0), prior.calls
    starts = (0, config.iterations // 2, config.iterations - 1)
    for start in starts:
        few_steps(config, prior, 1, start=start)
    return (prior.calls - before) / len(starts)
