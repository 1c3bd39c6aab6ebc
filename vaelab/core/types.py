"""Types of configuration values: what a constructor accepts is written in its signature.

The command line checks every value of the config against the signature of the `_target_` that
receives it (see `vaelab.core.config`), so a range written here is enforced before training starts.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Real = Annotated[float, Field(ge=-3e38, le=3e38, allow_inf_nan=False)]
"""A number that float32 holds."""
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31)]
PositiveFloat = Annotated[float, Field(gt=0, le=3e38, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=3e38, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Growth = Annotated[float, Field(gt=0, le=1)]
"""Relative growth of a controlled scalar per step and nat: by exp of it."""
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
"""The weight of the past in a moving average."""
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
"""A fraction that is not all."""
ProperFraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
"""A fraction that is neither nothing nor all."""
Portion = NonNegativeInt | Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
"""A part of something: a count, or a fraction below 1."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Shape = tuple[PositiveInt, PositiveInt, PositiveInt]
"""An image's (channels, height, width)."""
AskedLabel = NonNegativeInt | Real | str | list[Real | str]
"""A label as a user asks for it: a class by number or name; of a vector its numbers, or names of attributes."""
