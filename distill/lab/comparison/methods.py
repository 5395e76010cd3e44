"""What is compared where nothing else is said: methods with their options, and prompts."""

from __future__ import annotations

from typing import Any

#: Every method with its options, as ``distill.generate`` takes them. All draw timesteps uniformly, so that the
#: losses alone differ, except for those named ``tp_``, with DreamTime's, and ``sdi``, whose fall is part of it. SDS
#: has the scale that the search in docs/tuning.md found for runs as short as these.
METHODS: dict[str, dict[str, Any]] = {
    "sds": {"guidance": "sds", "guidance.scale": 4, "timesteps": "uniform"},
    "tp_sds": {"guidance": "sds", "guidance.scale": 4, "timesteps": "dreamtime"},
    "csd": {"guidance": "csd", "timesteps": "uniform"},
    "asd": {"guidance": "asd", "timesteps": "uniform"},
    "vsd": {"guidance": "vsd", "timesteps": "uniform"},
    "sdi": {"experiment": "sdi", "guidance.inversion": "even"},
}
#: What the papers' claims are tested with, beside ``METHODS``; see ``distill.lab.comparison.claims``.
VARIANTS: dict[str, dict[str, Any]] = {
    "tp_csd": {"guidance": "csd", "timesteps": "dreamtime"},
    "tp_asd": {"guidance": "asd", "timesteps": "dreamtime"},
    "tp_vsd": {"guidance": "vsd", "timesteps": "dreamtime"},
    "sds_7.5": {"guidance": "sds", "timesteps": "uniform", "guidance.scale": 7.5},
    "sds_100": {"guidance": "sds", "timesteps": "uniform", "guidance.scale": 100},
    "asd_fixed": {"guidance": "asd", "timesteps": "uniform", "guidance.random_shift": False},
    "asd_eta_0": {"guidance": "asd", "timesteps": "uniform", "guidance.eta": 0},
    "asd_eta_1": {"guidance": "asd", "timesteps": "uniform", "guidance.eta": 1},
}
#: The papers' losses with and without DreamTime's timesteps, for things: names with variants, between which seeds can differ.
ON_THINGS: dict[str, dict[str, Any]] = {
    "sds_100": VARIANTS["sds_100"],
    "tp_sds_100": {"guidance": "sds", "timesteps": "dreamtime", "guidance.scale": 100},
    "sds_7.5": VARIANTS["sds_7.5"],
    "tp_sds_7.5": {"guidance": "sds", "timesteps": "dreamtime", "guidance.scale": 7.5},
    "csd": METHODS["csd"],
    "tp_csd": VARIANTS["tp_csd"],
    "asd": METHODS["asd"],
    "tp_asd": VARIANTS["tp_asd"],
    "vsd": METHODS["vsd"],
    "tp_vsd": VARIANTS["tp_vsd"],
}
#: Names of things with three variants or more, in colours of their own.
THINGS = (
    "an armchair",
    "a sofa",
    "a stool",
    "a toilet",
    "a coffee table",
    "a sedan",
    "a bench",
    "a trash can",
    "a table lamp",
    "a bed",
    "a plant",
    "a truck",
)
PROMPTS = (
    "a blue chair",
    "a green mug",
    "an orange house",
    "a red rocket",
    "a purple duck",
    "a yellow car",
    "a brown mushroom",
    "a pink teapot",
)
#: The kinds that are left, for a machine with the time for them.
MORE_PROMPTS = (
    "a green sphere",
    "a pink cube",
    "a red cylinder",
    "a brown cone",
    "a blue torus",
    "a yellow table",
    "a green snowman",
    "an orange robot",
)
