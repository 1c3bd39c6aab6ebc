import inspect
import math
from itertools import pairwise

import pytest

from vaelab.nn import schedules
from vaelab.nn.schedules import Progress, constant, cosine, cyclical, linear, sigmoid, warmup_cosine

UNITS = ["steps", "epochs", "fraction"]
RISES = {
    "linear": linear,
    "cosine": cosine,
    "sigmoid": lambda *args, **options: sigmoid(*args, steepness=6.0, **options),
    "cyclical": lambda *args, **options: cyclical(*args, cycles=1, rise=1.0, **options),
}


def at(unit, amount):
    """Progress that is `amount` in `unit` and nonsense in the others."""
    values = {"steps": -7, "epochs": -7.0, "fraction": -7.0} | {unit: amount}
    return Progress(values["steps"], values["epochs"], values["fraction"])


def over(unit):
    return {"steps": 1600, "epochs": 10.0, "fraction": 0.5}[unit]


def points(unit, parts):
    """Progress at each part of `over`, in `unit`."""
    return [at(unit, round(part * over(unit)) if unit == "steps" else part * over(unit)) for part in parts]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shape", RISES)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (4.0, 1.0), (-1.0, 25.0)])
def test_every_shape_goes_from_start_to_end_and_stays_there(shape, unit, start, end):
    first, last, later = (
        RISES[shape](p, start=start, end=end, over=over(unit), unit=unit) for p in points(unit, [0, 1, 7])
    )
    assert first == pytest.approx(start, abs=1e-12)
    assert last == pytest.approx(end, abs=1e-12)
    assert later == pytest.approx(end, abs=1e-12)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shape", RISES)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (4.0, 1.0)])
def test_every_shape_moves_one_way_without_jumps(shape, unit, start, end):
    parts = [i / 200 for i in range(260)]
    values = [RISES[shape](p, start=start, end=end, over=over(unit), unit=unit) for p in points(unit, parts)]
    steps = [(b - a) / (end - start) for a, b in pairwise(values)]
    assert min(steps) >= -1e-12
    assert max(steps) < 0.02
    assert min(steps[:199]) > 0


@pytest.mark.parametrize("shape", ["linear", "cosine", "sigmoid"])
def test_every_rise_is_symmetric_about_its_middle(shape):
    values = [RISES[shape](p, start=0.0, end=1.0, over=1600, unit="steps") for p in points("steps", [0.2, 0.5, 0.8])]
    assert values[0] + values[2] == pytest.approx(1)
    assert values[1] == pytest.approx(0.5)


@pytest.mark.parametrize("shape", ["linear", "cosine", "sigmoid"])
def test_a_change_over_nothing_is_done_at_once(shape):
    for unit in UNITS:
        assert RISES[shape](at(unit, 0), start=0.0, end=3.0, over=0, unit=unit) == pytest.approx(3.0)


def test_constant_is_constant():
    assert {constant(Progress(step, step / 10, step / 100), value=0.3) for step in range(100)} == {0.3}


@pytest.mark.parametrize("epoch", [0, 0.5, 1, 2.5, 4.999, 5, 6, 50])
def test_the_warm_up_is_min_1_epoch_over_5(epoch):
    value = linear(Progress(10**6, epoch, 1.0), start=0.0, end=1.0, over=5, unit="epochs")
    assert value == pytest.approx(min(1, epoch / 5))


@pytest.mark.parametrize(("step", "capacity"), [(0, 0), (1, 0.005), (2500, 12.5), (5000, 25), (9999, 25)])
def test_the_capacity_ramp_is_linear_in_steps(step, capacity):
    value = linear(Progress(step, 99.0, 1.0), start=0.0, end=25.0, over=5000, unit="steps")
    assert value == pytest.approx(capacity)


def test_cosine_is_flat_at_both_ends():
    start, near, near_end = (cosine(p, 0.0, 1.0, 1600, "steps") for p in points("steps", [0, 0.01, 0.99]))
    assert near - start < 0.001
    assert 1 - near_end < 0.001
    assert cosine(points("steps", [0.25])[0], 0.0, 1.0, 1600, "steps") == pytest.approx((1 - math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize("steepness", [1e-3, 1.0, 6.0, 50.0, 1000.0])
def test_sigmoid_meets_both_ends_exactly_at_any_steepness(steepness):
    first, middle, last = (
        sigmoid(p, 0.0, 1.0, 1600, "steps", steepness=steepness) for p in points("steps", [0, 0.5, 1])
    )
    assert first == pytest.approx(0, abs=1e-12)
    assert middle == pytest.approx(0.5)
    assert last == pytest.approx(1, abs=1e-12)


def test_steepness_is_the_logistic_argument_at_the_ends():
    values = [sigmoid(p, 0.0, 1.0, 1600, "steps", steepness=6.0) for p in points("steps", [0.25, 0.75])]
    logistic = [1 / (1 + math.exp(-x)) for x in (-3, 3)]
    edge = 1 / (1 + math.exp(6))
    assert values == pytest.approx([(value - edge) / (1 - 2 * edge) for value in logistic])


@pytest.mark.parametrize("unit", UNITS)
def test_cyclical_restarts_every_cycle_and_ends_high(unit):
    def value(part):
        return cyclical(points(unit, [part])[0], 0.0, 1.0, over(unit), unit, cycles=4, rise=0.5)

    for cycle in range(4):
        begin = cycle / 4
        assert value(begin) == pytest.approx(0, abs=1e-9)
        assert value(begin + 0.0625) == pytest.approx(0.5)
        assert value(begin + 0.125) == pytest.approx(1)
        assert value(begin + 0.2) == pytest.approx(1)
    assert value(1) == value(3) == 1


@pytest.mark.parametrize("cycles", [1, 3, 7, 10, 25, 49])
def test_cyclical_restarts_at_the_very_step(cycles):
    total = 7 * cycles
    values = [cyclical(at("steps", step), 2.0, 3.0, total, "steps", cycles, 0.5) for step in range(total)]
    assert [step for step, value in enumerate(values) if value == 2.0] == list(range(0, total, 7))


def test_cyclical_with_no_rise_is_constant():
    assert {cyclical(at("steps", s), 0.0, 1.0, 100, "steps", cycles=4, rise=0.0) for s in range(120)} == {1.0}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_warmup_cosine_rises_then_falls_to_its_floor(unit, floor):
    def value(part):
        return warmup_cosine(points(unit, [part])[0], 0.1 * over(unit), over(unit), unit, floor=floor)

    assert value(0) == 0
    assert value(0.05) == pytest.approx(0.5)
    assert value(0.1) == pytest.approx(1)
    assert value(0.55) == pytest.approx((1 + floor) / 2)
    assert value(1) == pytest.approx(floor, abs=1e-12)
    assert value(2) == pytest.approx(floor, abs=1e-12)


def test_warmup_cosine_is_continuous():
    values = [warmup_cosine(at("steps", s), 100, 1000, "steps", floor=0.0) for s in range(1200)]
    assert max(abs(b - a) for a, b in pairwise(values)) < 0.011
    assert values.index(max(values)) == 100


def test_warmup_cosine_without_warmup_begins_at_one():
    assert warmup_cosine(at("fraction", 0.0), 0.0, 1.0, "fraction", floor=0.0) == 1


def test_schedules_are_pure_functions_of_progress():
    forward = [cyclical(at("steps", s), 0.0, 1.0, 100, "steps", 4, 0.5) for s in range(120)]
    backward = [cyclical(at("steps", s), 0.0, 1.0, 100, "steps", 4, 0.5) for s in reversed(range(120))]
    assert forward == backward[::-1]


def test_every_shape_takes_progress_first_and_repeats_no_defaults():
    shapes = [constant, linear, cosine, sigmoid, cyclical, warmup_cosine]
    for shape in shapes:
        first, *rest = inspect.signature(shape).parameters.values()
        assert first.name == "progress"
        assert all(p.default is inspect.Parameter.empty for p in rest)


def test_ramp_is_the_part_that_has_passed():
    assert [schedules.ramp(at("epochs", e), 4, "epochs") for e in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
