"""Which settings a trial reads: that depends on its method and on the parts it is made of."""

from __future__ import annotations

from pydantic.fields import FieldInfo

from crh_tune.hashing.methods import METHODS
from crh_tune.hashing.objectives import OBJECTIVES, Symbol
from crh_tune.settings.base import SettingsError
from crh_tune.settings.training import (
    CODEBOOK_NAMES,
    OBJECTIVE_NAMES,
    ROUND_NAMES,
    TrainingSettings,
    optimizer_defaults,
)
from crh_tune.settings.trial import TrialSettings

PARTS = ("method", "weights", "optimizer", "objective", "centers", "reassignment")
"""The settings that decide what else is read."""
_WRITTEN_BY_0_1 = {"quantization_weight": 0.0, "margin": 0.2}
"""What version 0.1 wrote into the settings of trials and searches whose objective has no such setting."""


def unread(method: str, trial: TrainingSettings) -> frozenset[str]:
    """The names of the settings that a trial of this method, with these parts, never looks at."""
    row = METHODS[method]
    objective, centers = OBJECTIVES[trial.objective or row.objective], trial.centers or row.centers
    names = set(OBJECTIVE_NAMES) - set(objective.options_type.own())
    if centers != "codebook":
        names |= set(CODEBOOK_NAMES)
    if centers == "none":
        names.add("center_seed")
    if (trial.reassignment or row.reassignment) == "none":
        names |= set(ROUND_NAMES)
    trained_before = trial.weights is not None and not trial.freeze
    if (trial.optimizer or optimizer_defaults(row.optimizer, trained_before)["optimizer"]) != "adam":
        names.add("betas")
    return frozenset(names)


def is_given(trial: TrainingSettings, name: str) -> bool:
    """Whether a setting has another value than the one that it has by default, or that version 0.1 wrote."""
    return getattr(trial, name) not in (TrainingSettings.model_fields[name].default, _WRITTEN_BY_0_1.get(name))


def given_in_vain(method: str, trial: TrainingSettings) -> list[str]:
    """The settings that are not read, and have a value other than the one they have by default."""
    names = unread(method, trial) - set(CODEBOOK_NAMES)  # those are looked at when the trial is resolved
    betas = METHODS[method].optimizer.betas  # as in resolved settings
    return sorted(name for name in names if is_given(trial, name) and (name, trial.betas) != ("betas", betas))


def refuse_in_vain(settings: TrialSettings, where: str) -> None:
    """Raises SettingsError where one trial is given a setting that its method does not use."""
    for name in given_in_vain(settings.method, settings.trial):
        raise SettingsError(f"{where}: trial.{name}: method {settings.method} does not use it: leave it out")


def symbols(method: str, trial: TrainingSettings) -> dict[str, Symbol]:
    """The settings with a symbol that a trial reads, in the order in which they are told."""
    own = OBJECTIVES[trial.objective or METHODS[method].objective].options_type.own()
    hidden = unread(method, trial)
    fields = {**TrainingSettings.model_fields, **own}
    found = {name: symbol_of(field) for name, field in fields.items() if name not in hidden}
    return {name: symbol for name, symbol in found.items() if symbol is not None}


def symbol_of(field: FieldInfo) -> Symbol | None:
    """The symbol that a setting is declared with."""
    return next((each for each in field.metadata if isinstance(each, Symbol)), None)


def short(value: object) -> str:
    """A setting's value, numbers to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
