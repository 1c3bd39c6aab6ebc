"""Types of configuration values: what a constructor accepts is written in its signature.

The command line checks every value of the config against the signature of the `_target_` that
receives it (see `vaelab.core.config`), so a range written here is enforced before training starts.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Shape = tuple[PositiveInt, PositiveInt, PositiveInt]
"""An image's (channels, height, width)."""
