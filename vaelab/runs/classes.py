"""The classes that a run's model was trained with, by number and by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from vaelab.core.errors import UserError

SHOWN = 12
"""Most classes that a message names."""


class Classes(NamedTuple):
    """The classes of a data set. count: how many. names: in the order of their numbers; None if they are not known."""

    count: int
    names: Sequence[str] | None

    def name(self, number: int) -> str:
        """Returns the name of a class, its number if the names are not known."""
        return self.names[number] if self.names else str(number)

    @property
    def words(self) -> str:
        """All classes in words: `0 to 9`, or their names."""
        numbers = [str(number) for number in range(self.count)]
        if self.names is None or list(self.names) == numbers:
            return f"0 to {self.count - 1}"
        return ", ".join(self.names[:SHOWN]) + (f", … ({self.count} in all)" if self.count > SHOWN else "")

    def find(self, label: int | str) -> int | None:
        """Finds the number of a class by its name, None if there is no such class.

        `7` is also the class 07, and `cat` Cat, if there is one such class alone. A number that is no name counts as a
        number where no class is named by one.
        """
        names = self.names or [str(number) for number in range(self.count)]
        for same in (str, _loosely):
            found = [number for number, name in enumerate(names) if same(name) == same(str(label))]
            if len(found) == 1:
                return found[0]
        numbered = any(name.isdecimal() for name in names)
        return label if isinstance(label, int) and 0 <= label < self.count and not numbered else None

    def require(self, label: int | str) -> int:
        """Finds the number of the class that `label=` names. Raises UserError if there is none."""
        number = self.find(label)
        if number is None:
            near = [] if str(label).isdecimal() else difflib.get_close_matches(str(label), self.names or [], 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"label={label}: {hint}the model's classes are {self.words}")
        return number


def _loosely(name: str) -> str:
    return str(int(name)) if name.isdecimal() else name.casefold()
