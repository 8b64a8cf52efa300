"""Which settings a trial reads: that depends on its method and on the parts it is made of."""

from __future__ import annotations

from crh_tune.hashing.methods import METHODS
from crh_tune.hashing.objectives import OBJECTIVES
from crh_tune.settings.base import SettingsError
from crh_tune.settings.training import TrainingSettings, optimizer_defaults
from crh_tune.settings.trial import TrialSettings

PARTS = ("method", "weights", "optimizer", "objective", "centers", "reassignment")
"""The settings that decide what else is read."""
CODEBOOK_NAMES = ("codebook_ratio", "codebook_size", "head_dim")
"""Settings that only centres from a codebook have."""
_OBJECTIVE_NAMES = ("scale", "margin", "quantization_weight")
_ROUND_NAMES = ("update_interval", "early_epochs", "reassignment_codes")
_TOLD = (
    ("M", "codebook_size"),
    ("d", "head_dim"),
    ("lambda", "quantization_weight"),
    ("margin", "margin"),
    ("interval", "update_interval"),
)


def unread(method: str, trial: TrainingSettings) -> frozenset[str]:
    """The names of the settings that a trial of this method, with these parts, never looks at."""
    row = METHODS[method]
    objective, centers = OBJECTIVES[trial.objective or row.objective], trial.centers or row.centers
    names = set(_OBJECTIVE_NAMES) - objective.reads
    if centers != "codebook":
        names |= set(CODEBOOK_NAMES)
    if centers == "none":
        names.add("center_seed")
    if (trial.reassignment or row.reassignment) == "none":
        names |= set(_ROUND_NAMES)
    trained_before = trial.weights is not None and not trial.freeze
    if (trial.optimizer or optimizer_defaults(row.optimizer, trained_before)["optimizer"]) != "adam":
        names.add("betas")
    return frozenset(names)


def given_in_vain(method: str, trial: TrainingSettings) -> list[str]:
    """The settings that are not read, and have a value other than the one they have by default."""
    defaults = {name: field.default for name, field in TrainingSettings.model_fields.items()}
    filled = {"quantization_weight": 0.0, "betas": METHODS[method].optimizer.betas}  # as in resolved settings
    names = unread(method, trial) - set(CODEBOOK_NAMES)  # those are looked at when the trial is resolved
    return sorted(name for name in names if getattr(trial, name) not in (defaults[name], filled.get(name)))


def refuse_in_vain(settings: TrialSettings, where: str) -> None:
    """Raises SettingsError where one trial is given a setting that its method does not use."""
    for name in given_in_vain(settings.method, settings.trial):
        raise SettingsError(f"{where}: trial.{name}: method {settings.method} does not use it: leave it out")


def symbols(method: str, trial: TrainingSettings) -> dict[str, str]:
    """What a resolved trial reads of the paper's settings, setting -> ``symbol=value``."""
    hidden = unread(method, trial)
    return {name: f"{symbol}={short(getattr(trial, name))}" for symbol, name in _TOLD if name not in hidden}


def short(value: object) -> str:
    """A setting's value, numbers to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
