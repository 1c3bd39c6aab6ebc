"""Spaces of a search in Hydra's grammar, and what Optuna makes of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from vaelab.core.errors import UserError

TAGS = {"log", "int"}


class Space(NamedTuple):
    """Values that a key can take.

    key: the config key or group. written: the key with the `+` or `@package` that the user gave it.
    distribution: that of Optuna.
    """

    key: str
    written: str
    distribution: Any

    def suggest(self, trial: Any) -> Any:
        """Asks a trial for its value of the key."""
        d = self.distribution
        if hasattr(d, "choices"):
            return trial.suggest_categorical(self.key, d.choices)
        suggest = trial.suggest_int if isinstance(d.low, int) else trial.suggest_float
        return suggest(self.key, d.low, d.high, step=d.step, log=d.log)

    def override(self, value: Any) -> str:
        """Returns the argument that gives a job this value of the key."""
        return f"{self.written}={value}"

    @property
    def choices(self) -> list[Any]:
        """Values that the key is chosen from; the lower end of the space where it is no choice."""
        return list(getattr(self.distribution, "choices", ())) or [self.distribution.low]


def space(override: Override) -> Space:
    """Reads the space in an argument such as `model.beta=interval(1,16)`. Raises UserError if it is none."""
    from optuna.distributions import CategoricalDistribution

    key, sweep = override.key_or_group, override.value()
    tags: set[str] = set(getattr(sweep, "tags", ()))
    if unknown := sorted(map(str, tags - TAGS)):
        raise UserError(f"{key}: tag({unknown[0]}, …) means nothing to a search: it knows log and int")
    if getattr(sweep, "shuffle", False):
        raise UserError(f"{key}: a search has no order to shuffle: leave out shuffle(…)")
    try:
        if isinstance(sweep, IntervalSweep):
            distribution = _interval(sweep, tags)
        elif isinstance(sweep, RangeSweep):
            distribution = _range(sweep, tags)
        elif tags:
            raise UserError(f"{key}: tag(…) is for interval and range; a choice has no scale")
        else:
            distribution = CategoricalDistribution(_choices(override))
    except ValueError as error:
        raise UserError(f"{override.input_line}: {str(error).strip().splitlines()[0]}") from error
    return Space(key, override.get_key_element(), distribution)


def _interval(sweep: IntervalSweep, tags: set[str]) -> Any:
    """Makes the distribution of an interval: real numbers, or integers where `int(…)` or `tag(int, …)` says so."""
    from optuna.distributions import FloatDistribution, IntDistribution

    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    if "int" in tags or (isinstance(low, int) and isinstance(high, int)):
        if int(low) != low or int(high) != high:
            raise ValueError("the ends of an interval of integers must be integers")
        return IntDistribution(int(low), int(high), log="log" in tags)
    return FloatDistribution(low, high, log="log" in tags)


def _range(sweep: RangeSweep, tags: set[str]) -> Any:
    """Makes the distribution of `range(start, stop, step)`, which does not reach its stop."""
    from optuna.distributions import FloatDistribution, IntDistribution

    values = sorted(sweep.range())
    if not values:
        raise ValueError("this range is empty")
    step, log = abs(sweep.step), "log" in tags
    if all(isinstance(value, int) for value in values):
        return IntDistribution(values[0], values[-1], log=log, step=int(step))
    if "int" in tags:
        raise ValueError("the numbers of this range are no integers")
    return FloatDistribution(values[0], values[-1], log=log, step=None if log else float(step))


def _choices(override: Override) -> list[Any]:
    """Lists the values of a choice: numbers as numbers, anything else as it is written on the command line."""
    values = list(override.sweep_iterator())
    if not all(type(value) in (int, float) for value in values):
        values = list(override.sweep_string_iterator())
    if len(set(values)) < len(values):
        raise ValueError("a value is there twice")
    return values
