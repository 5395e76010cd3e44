"""Say random things to the command line: each is done, or refused in one clear line.

    python examples/soak/words.py --lines 2000 --output /tmp/words

Command lines and configuration files are made of known options, group choices, slips in their names, values of every type (NaN,
huge numbers, other languages, empty text, lists, files that are not what they should be), prompts and flags; half of them ask
``--options``, ``--why``, ``doctor`` or train one small step. Each is answered in this process. A fault is: a traceback or an exception
that leaves ``main``; an exit code other than 0, 1 and 2; 0 where nothing was printed, written or done; anything else without exactly
one line that begins with ``distill: error:``. One line sums up, and the exit code is 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import random
import time
from collections import Counter
from pathlib import Path

from small import SMALL, preload

STRANGE = [
    "", " ", "nan", "inf", "-inf", "-1", "0", "1e400", "99999999999999999999", "1.5", "true", "null", "None", "[]", "[1,2", "{a:1}", "{",
    "}", "${", "${prompt}", "${oc.env:HOME}", "'", '"', "\\", "a,b", "a=b", "=", "ü", "红色的杯子", "🫖", "a\tb", "a\nb", "\x00"[:0], "-", "--", "~",
    "x" * 3000, "../..", "/", "/dev/null", "/proc/self/mem", "1,2,3", "{start:1,end:nan}", "{start:0,end:1,from_fraction:2}", "[0.9,0.99]",
    "{start:0,end:1}", "0x10", "1_000", "on", "???", "!!python/object:os.system", "*", "&x", "@", "a@b", "$HOME", "%d", "%s%s%n",
]  # fmt: skip
PROMPTS = [
    "a red mug",
    "a blue table",
    "a dragon",
    "",
    "   ",
    "ein roter Becher",
    "杯",
    "a red mug, big",
    "seed=1",
    "--",
    "-x",
    "doctor",
    "mug.png",
    "${x}",
]
FLAGS = [
    "--options",
    "--why",
    "seed",
    "--config-dir",
    "own",
    "--json",
    "-m",
    "--help",
    "--version",
    "--cfg",
    "job",
    "--bad",
    "-x",
    "--info",
    "--hydra-help",
]


def files(folder: Path, chance: random.Random) -> list[str]:
    """Write files of many kinds that are not what an option wants, and return their names."""
    from PIL import Image

    own = folder / "own" / "experiment"
    own.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 24), "white").save(folder / "white.png")
    mug = Image.new("RGB", (32, 32), "white")
    mug.paste((200, 30, 30), (8, 8, 24, 24))
    mug.save(folder / "mug.png")
    for path, content in {
        "empty": b"", "text.png": b"x", "list.txt": b"a red mug\n", "bad.txt": b"\xff\xfe\n", "views.yaml": b"front: [",
        "file.safetensors": b"\x00" * 50, "deep/config.yaml": b"prompt: x\n", "model/model_index.json": b"{}",
        "model2/model_index.json": b'{"_class_name": ["x"]}', "model3/model_index.json": b"[",
    }.items():  # fmt: skip
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)
    for number in range(12):
        lines = ["# @package _global_"] + [
            f"{name(chance)}: {chance.choice(STRANGE)}" for _ in range(chance.randint(0, 3))
        ]
        (own / f"e{number}.yaml").write_text(
            "\n".join(lines).replace(".", ":\n  ", 1) + "\n", encoding="utf-8"
        )
    return [path.name for path in folder.iterdir()] + ["gone", "own"]


def name(chance: random.Random) -> str:
    """The name of an option, at times with a slip."""
    from distill.run.config.known import known_options
    from distill.run.config.plugins import plugin_options

    found = chance.choice(
        [
            *known_options(),
            *plugin_options(),
            "guidance",
            "timesteps",
            "scene",
            "cameras",
            "experiment",
            "preset",
            "init",
        ]
    )
    if chance.random() < 0.1:
        place = chance.randrange(len(found))
        found = found[:place] + chance.choice("xyz._/@+ ") + found[place + 1 :]
    return chance.choice(["", "", "", "", "+", "++", "~"]) + found


def value(chance: random.Random, there: list[str]) -> str:
    """A value of any kind."""
    from distill.run.config.plugins import plugins

    kind = chance.random()
    if kind < 0.5:
        return chance.choice(STRANGE)
    if kind < 0.65:
        return chance.choice([choice for choices in plugins().values() for choice in choices])
    if kind < 0.8:
        return chance.choice(there)
    return str(chance.choice([chance.randint(-3, 300), chance.uniform(-1, 2), 10 ** chance.randint(0, 30)]))


def line(chance: random.Random, there: list[str], train: float) -> list[str]:
    """A command line; at most a share ``train`` of them may reach the training."""
    words = [f"{name(chance)}={value(chance, there)}" for _ in range(chance.choice([0, 1, 1, 1, 2, 3]))]
    if chance.random() < 0.85:
        words.insert(0, chance.choice(PROMPTS) if chance.random() < 0.5 else "a red mug")
    if chance.random() < 0.15:
        words.insert(chance.randint(0, len(words)), chance.choice(FLAGS))
    if chance.random() < 0.1:
        words += ["--config-dir", "own", f"+experiment=e{chance.randint(0, 13)}"]
    kind = chance.random()
    if kind > train:
        return [*words, "--options"] if kind < 0.8 else [*words, "--why", name(chance)]
    return [
        *words,
        *SMALL,
        "iterations=1",
        "log.preview_every=0",
        "log.checkpoint_every=0",
        "log.tensorboard=false",
    ]


def answered(words: list[str]) -> tuple[object, str, str]:
    """Exit code, or what left ``main`` instead, and what was written to the two streams."""
    from distill.cli import main

    out, err = io.StringIO(), io.StringIO()
    for handler in logging.getLogger().handlers[:]:
        logging.getLogger().removeHandler(handler)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
            code: object = None
        except SystemExit as ended:
            code = ended.code
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    return code, out.getvalue(), err.getvalue()


def fault(code: object, out: str, err: str) -> str:
    """What is wrong with an answer, or nothing."""
    if not isinstance(code, int):
        return f"left main: {code}"
    if "Traceback (most recent" in out + err:
        return "a traceback"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    errors = [said for said in err.splitlines() if said.startswith("distill: error:")]
    if code == 0:
        return (
            "0, and an error"
            if errors
            else ""
            if out.strip() or "results in" in err
            else "0, and nothing was done"
        )
    if "failed:" in out:
        return ""  # a queue's list
    if len(errors) != 1 or len(errors[0]) < 30:
        return f"{code}, and {len(errors)} lines of errors"
    return ""


def main() -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lines", type=int, default=2000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of what is said")
    parser.add_argument("--train", type=float, default=0.1, help="share of lines that may train a step")
    parser.add_argument("--output", type=Path, required=True, help="a folder to work in")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    os.chdir(options.output)
    os.environ["HF_HUB_OFFLINE"] = "1"
    preload()
    chance, codes, faults, began = (
        random.Random(options.seed),
        Counter[object](),
        list[str](),
        time.monotonic(),
    )
    there = files(Path(), chance)
    for number in range(options.lines):
        words = line(chance, there, options.train)
        code, out, err = answered(words)
        codes[code if isinstance(code, int) else "none"] += 1
        if wrong := fault(code, out, err):
            faults.append(wrong)
            print(f"fault: {wrong}: {words!r:.600}: {err.strip()[-300:]!r}", flush=True)
        if number % 200 == 199:
            print(f"{number + 1} lines, {len(faults)} faults, {time.monotonic() - began:.0f} s", flush=True)
    counts = ", ".join(f"{count} ended with {code}" for code, count in sorted(codes.items(), key=str))
    print(f"words: {options.lines} lines: {counts}; {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
