"""Help of the commands, as ``distill COMMAND --help`` prints it."""

from __future__ import annotations

import argparse
from typing import NamedTuple, NoReturn


class Usage(NamedTuple):
    """One command's help.

    Attributes:
        line: the command line, after ``distill``.
        does: in a sentence.
        options: each with what it does.
        example: a command line, after ``distill``.
    """

    line: str
    does: str
    options: dict[str, str]
    example: str


#: What options of a run's configuration are called.
_ANY = {"NAME=VALUE": "any option of a run; 'distill --options' lists all"}
_FOLDERS = {"--config-dir DIR": "a folder with your own configuration files"}

#: The commands.
USAGES = {
    "amortise": Usage(
        "amortise prompts=FILE [NAME=VALUE ...]",
        "Train one generator for a library of prompts, which then makes a prompt's scene without training.",
        {
            "prompts=FILE": "a prompt in each line, or JSON with the lists train, validation and held_out",
            "scene=NAME": "hyper_grid (default) or hyper_conv",
            "output_dir=DIR": "folder of the generator; by default a new one in outputs/",
            **_ANY,
            **_FOLDERS,
            "-m": "sweep: a training for each of several values",
        },
        "amortise prompts=library.txt iterations=4000 output_dir=outputs/library",
    ),
    "doctor": Usage(
        "doctor [PROMPT] [NAME=VALUE ...] [--json]",
        "Check the machine and a run's options, and forecast its memory and time; only one small step is trained.",
        {"--json": "print JSON", **_ANY, **_FOLDERS},
        "doctor prior=sd-2.1-base guidance=vsd",
    ),
    "export": Usage(
        "export RUN [export.NAME=VALUE ...] [device=NAME]",
        "Write the mesh of a finished run again, next to its files; nothing is replaced.",
        {
            "export.formats=LIST": "of glb, obj, ply, stl, usdz",
            "export.name=NAME": "of the files, by default mesh",
            "export.pivot=NAME": "scene, centre or ground",
            "export.size_m=METRES": "the largest extent",
            "export.up=AXIS": "y or z",
            "export.lods=N": "number of additional simplified meshes",
            "device=NAME": "auto, cpu or cuda",
        },
        "export outputs/RUN export.formats=usdz export.size_m=0.1",
    ),
    "priors": Usage(
        "priors [NAME]",
        "List the models that prior= accepts by name; with a name, the objects that a bundled prior knows.",
        {"NAME": "embedded, things, views or a prior's folder"},
        "priors things",
    ),
    "summary": Usage(
        "summary [FOLDER]",
        "Print one table over all runs in a folder, and write it there as summary.csv and summary.html.",
        {"FOLDER": "by default outputs/"},
        "summary outputs/",
    ),
}


class Parser(argparse.ArgumentParser):
    """A parser that refuses wrong arguments in one line, with exit code 2; those of its subcommands do likewise."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def usage_of(command: str) -> str:
    """Return the help of a command: usage, description, options, an example."""
    usage = USAGES[command]
    width = max(map(len, ("--help", *usage.options)))
    options = "".join(f"  {name:{width}}  {does}\n" for name, does in usage.options.items())
    return f"usage: distill {usage.line}\n\n{usage.does}\n\n{options}  {'--help':{width}}  print this\n\nexample: distill {usage.example}\n"
