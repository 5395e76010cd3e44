"""Write the tables of recipes.md: what each experiment sets on a published model, beside the published value.

    python docs/write_recipes.py

The options and the published values are those of published.yaml; what is set here is read from the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from distill.run.config.compose import compose_config

HERE = Path(__file__).parent
PAGE = HERE / "recipes.md"
#: What a table stands between.
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def published() -> dict[str, Any]:
    """Read published.yaml."""
    found: dict[str, Any] = yaml.safe_load((HERE / "published.yaml").read_text())
    return found


def setting(config: Mapping[str, Any], option: str) -> Any:
    """Return an option's value in a configuration.

    Raises:
        KeyError: there is no such option.
    """
    value: Any = config
    for key in option.split("."):
        value = value[key]
    return value


def composed(name: str, recipe: Mapping[str, Any]) -> Any:
    """Return the whole configuration of a recipe on its prior, as plain values."""
    # A recipe with a scene of its own is for a library, whose file is not read here.
    asked = "prompts=x" if "scene" in recipe else "prompt=x"
    words = [asked, f"prior={recipe['prior']}", f"experiment={recipe.get('experiment', name)}"]
    # A picture's file is not read here, either.
    words += ["image=x.png"] if recipe.get("image") else []
    # Of a stage, what comes before it, too; the configuration is the last one's.
    words += [f"stages=[{','.join(recipe['stages'])}]"] if "stages" in recipe else []
    return OmegaConf.to_container(compose_config(words))


def plain(value: object) -> str:
    """A value as the command line takes it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {plain(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(name: str, recipe: Mapping[str, Any]) -> str:
    """A recipe's table in Markdown."""
    config = composed(name, recipe)
    rows = [f"Published: {recipe['source']}.", "", "| option | here | published |", "|---|---|---|"]
    for option, value, where in recipe["rows"]:
        here = value if option is None else f"`{plain(setting(config, option))}`"
        rows.append(f"| {'' if option is None else f'`{option}`'} | {here} | {where} |")
    return "\n".join(rows) + "\n"


def written(page: str) -> str:
    """The page with its tables made again."""
    recipes = published()
    return MARKED.sub(lambda found: found[1] + table(found[2], recipes[found[2]]) + found[3], page)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
