"""Several losses at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from distill.conditions import prompts
from distill.conditions.control import with_control
from distill.conditions.image_prompt import image_of, with_image
from distill.contracts import Condition, Conditioner, Embedding, Guidance, Learner, Prior
from distill.domains import Losses
from distill.guidance import available, is_made_for_prior, made_for_prior, set_up
from distill.guidance.terms import draw_from
from distill.options import TERM_FIELDS, check_terms, numbers, schedule, second_prompt
from distill.parts.step import unchanged
from distill.priors.control import CONTROL
from distill.priors.load import load_prior
from distill.samplers.schedules import Ramp, scheduled
from distill.transfer import send

#: What a term calls the model of the run's input picture.
NOVEL_VIEW = "novel_view"


@made_for_prior
def mix(
    prior: Prior,
    generator: torch.Generator,
    priors: Mapping[str, Prior] | None = None,
    *,
    terms: Annotated[Sequence[Mapping[str, Any]], Losses()] = ({"loss": "sds"}, {"loss": "csd"}),
    view_words: Literal["auto", "four", "sixteen", "none"] = "auto",
) -> Guidance:
    r"""Return the weighted sum of losses, each optionally with its own prompt and prior.

    .. math:: g = \sum_i w_i(\mathrm{progress}) \, g_i

    A term with its own prior receives the picture of ``x``, encoded for that prior, at the same fraction
    of its timesteps; its gradient is backpropagated through that encoding.

    Args:
        prior: the frozen diffusion model of the terms without their own.
        generator: random numbers for constructing terms.
        priors: loaded priors that terms can name, for example ``novel_view``, the model of the input picture.
        terms: mappings with ``loss``, a name, and optionally ``weight`` (a number or a schedule in fractions;
            1), ``prompt``, ``prior`` (as for ``distill.load_prior``, or a loaded one) and the loss's options.

        view_words: added to terms' own prompts: ``auto`` by the prior, or as for ``distill.conditions.prompts.view_words``.

    Returns:
        A callable ``(prior, x, cond, t, noise) -> dL/dx``, same shape as ``x``, shape ``[batch,
        channel, height, width]``, detached, not averaged over the batch.

    Raises:
        ValueError: a term has no or an unknown loss, or an option that its loss does not have; or two terms
            would train inside one prior.

    Source: sums as in Magic3D and HiFA, Lin et al. 2022, arXiv:2211.10440, and Zhu et al. 2023, arXiv:2305.18766.
    """
    check_terms("guidance.terms", terms)
    made = [
        make_term(prior, generator, priors or {}, number, term, view_words)
        for number, term in enumerate(terms)
    ]
    taught = [id(term.prior or prior) for term in made if isinstance(term.loss, Learner)]
    if len(set(taught)) < len(taught):
        raise ValueError(
            "guidance.terms has two losses that train a copy inside one prior; give one of them a prior of its own"
        )
    if any(isinstance(term.loss, Learner) for term in made):
        return LearningMixture(made)
    return Mixture(made)


@dataclass(frozen=True)
class Term:
    """One loss with its weight, and optionally its own prior and prompt."""

    loss: Guidance
    weight: Callable[[float], float]
    prior: Prior | None = None
    condition: Conditioner | None = None

    def given(self, prior: Prior, x: Tensor, cond: Condition) -> tuple[Prior, Tensor, Condition]:
        """Return the prior, picture and condition of this term."""
        if self.condition is not None:
            if cond.cameras is None:
                raise ValueError("a term with its own prompt or prior needs cond.cameras, which is None")
            own = self.condition(cond.cameras, cond.step)
            if self.prior is None:  # another prior would not know these embeddings
                own = _with_rest(own, cond)
            cond = own
        if self.prior is None:
            return prior, x, cond
        return self.prior, self.prior.encode(prior.decode(x)), cond

    def __call__(self, prior: Prior, x: Tensor, cond: Condition, t: Tensor, noise: Tensor) -> Tensor:
        weight = self.weight(cond.step.progress)
        if self.prior is None:
            model, _, own = self.given(prior, x, cond)
            return weight * self.loss(model, x, own, t, noise)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            model, z, own = self.given(prior, leaf, cond)
        level = t * (model.num_timesteps - 1) // (prior.num_timesteps - 1)
        grad = self.loss(model, z.detach(), own, level, resampled(noise, z))
        (back,) = torch.autograd.grad(z, leaf, grad)
        return weight * back


def _with_rest(own: Condition, cond: Condition) -> Condition:
    """Add to the condition of a term's own prompt what it shares with the run's: all prompts but its own, control and picture."""
    _check_lengths(own.text, cond.text)
    if CONTROL in cond.text:
        own = with_control(own, cond.text[CONTROL])
    if (image := image_of(cond)) is not None:
        own = with_image(own, *image)
    shared = {role: value for role, value in cond.prompts.items() if role in ("negative", "source")}
    return replace(own, prompts={**own.prompts, **shared}, source_x=cond.source_x)


def _check_lengths(own: Embedding, given: Embedding) -> None:
    """Weighted prompts may be of several lengths, and are not compared across them."""
    name = "encoder_hidden_states"
    if name in own and own[name].shape != given[name].shape:
        raise ValueError(
            f"a term's own prompt comes to {own[name].shape[1]} tokens and the run's to {given[name].shape[1]}; make them "
            "equally many parts of the text encoder's length, or leave out the term's prompt"
        )


class Mixture:
    """The sum of terms."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = terms

    def __call__(self, prior: Prior, x: Tensor, cond: Condition, t: Tensor, noise: Tensor) -> Tensor:
        found = list[Tensor]()
        for number, term in enumerate(self.terms):
            with unchanged(f"guidance.terms[{number}]", x, cond, t, noise):
                found.append(term(prior, x, cond, t, noise))
        return torch.stack(found).sum(0).detach()


class LearningMixture(Mixture):
    """A mixture in which some terms have trainable parameters."""

    def learners(self) -> list[tuple[Term, Learner]]:
        return [(term, term.loss) for term in self.terms if isinstance(term.loss, Learner)]

    def learn(
        self,
        prior: Prior,
        x: Tensor,
        cond: Condition,
        generator: torch.Generator,
        at_once: int | None = None,
    ) -> float:
        with torch.no_grad():
            given = [(learner, term.given(prior, x, cond)) for term, learner in self.learners()]
        return sum(learner.learn(*parts, generator, at_once) for learner, parts in given)

    def save(self, folder: Path) -> None:
        """Write each learner's files to a separate folder, ``term-0`` and so on."""
        for number, term in enumerate(self.terms):
            if isinstance(term.loss, Learner):
                (own := folder / f"term-{number}").mkdir(parents=True, exist_ok=True)
                term.loss.save(own)

    def state_dict(self) -> dict[str, Any]:
        return {str(i): learner.state_dict() for i, (_, learner) in enumerate(self.learners())}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for i, (_, learner) in enumerate(self.learners()):
            learner.load_state_dict(saved[str(i)])


def resampled(noise: Tensor, like: Tensor) -> Tensor:
    """Noise of another shape that follows from the given one, picture by picture, so that a loss stays deterministic."""
    if noise.shape == like.shape:
        return noise
    return send(draw_from(noise, like.shape[1:]), like.device).to(like)


def make_term(
    prior: Prior,
    generator: torch.Generator,
    priors: Mapping[str, Prior],
    number: int,
    term: Mapping[str, Any],
    view_words: str,
) -> Term:
    """Construct one term from its configuration."""
    where, maker = f"guidance.terms[{number}]", available()[term["loss"]]
    numeric = numbers(maker)
    bound = {
        key: schedule(f"{where}.{key}", value, None) if numeric.get(key) == 1 and value is not None else value
        for key, value in term.items()
        if key not in TERM_FIELDS
    }
    weight = schedule(f"{where}.weight", term.get("weight", 1.0), None)
    own = own_prior(where, term, prior, priors)
    condition = own_condition(where, term, own, prior, view_words)
    model = own or prior
    check_views(where, model, prior)
    made = is_made_for_prior(maker)
    loss = set_up(maker, model, generator, priors, **bound) if made else scheduled(maker, **bound)
    return Term(
        loss, weight if isinstance(weight, Ramp) else partial(_constant, float(weight)), own, condition
    )


def own_prior(where: str, term: Mapping[str, Any], prior: Prior, priors: Mapping[str, Prior]) -> Prior | None:
    """Return the prior that a term names, or None where it shares the run's.

    Raises:
        ValueError: it is the model of an input picture, and there is no picture; or it cannot be loaded.
    """
    named = term.get("prior")
    if not isinstance(named, str):
        return named
    if named in priors:
        return None if priors[named] is prior else priors[named]
    if named == NOVEL_VIEW:
        raise ValueError(f"{where} names the model of an input picture, and there is none; add image=FILE")
    return load_prior(named, prior.device)


def check_views(where: str, model: Prior, prior: Prior) -> None:
    """Refuse a term's prior with another number of views than the run's, for which timesteps and cameras are drawn.

    Raises:
        ValueError: it does.
    """
    if model.views in (1, prior.views):
        return
    swap = f"make {model.name} the run's with prior=, and give the other one to the term"
    raise ValueError(
        f"{where}: {model.name} takes {model.views} views together and the run's prior {prior.views}; "
        + (swap if prior.views == 1 else f"give the run's prior_options.views={model.views}")
    )


def own_condition(
    where: str, term: Mapping[str, Any], own: Prior | None, prior: Prior, view_words: str
) -> Conditioner | None:
    """Return the conditioner of a term with its own conditions, or None if it shares the run's.

    Raises:
        ValueError: a prior of its own lacks its prompt, or has one that it does not know; or its loss needs words.
    """
    if own is None and "prompt" not in term:
        return None
    model = own or prior
    if not model.words:
        loss = available()[term["loss"]]
        if loss is mix or second_prompt(loss, term, None) == "source":
            raise ValueError(
                f"{where}: {term['loss']} needs prompts, and {NOVEL_VIEW} knows none; choose a loss such as sds, csd, asd or ism"
            )
        if term.get("prompt"):
            raise ValueError(
                f"{where}: {NOVEL_VIEW} is conditioned on a picture and takes no prompt; leave prompt out"
            )
        return prompts.conditioner(model, prompts.PICTURED)
    if not term.get("prompt"):
        raise ValueError(f'{where} has its own prior, which needs its own prompt; add prompt: "..."')
    told = view_words == "auto" and model.views > 1  # its cameras, in numbers
    words = prompts.view_words("none" if told else view_words, model.name)
    return prompts.conditioner(model, term["prompt"], views=words)


def _constant(value: float, progress: float) -> float:
    return value
