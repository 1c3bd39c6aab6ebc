"""Exceptions that are told to the user without a traceback."""

from importlib.util import find_spec


class UserError(Exception):
    """Raised where something that the user asked for cannot be done.

    The message is one or two lines: the key or file, what is wrong, and the remedy. The command
    line prints it without a traceback and exits with code 2, and a notebook shows it alone.
    """

    def _render_traceback_(self) -> list[str]:
        """Returns the lines that IPython shows in the place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class DivergenceError(RuntimeError):
    """Raised where a term of the objective became infinite or NaN: training cannot go on."""


class MachineError(RuntimeError):
    """Raised where the machine, and not the program, ends a run: a full disk, a removed folder, too little memory."""


class Stopped(SystemExit):
    """Raised where a signal ends the program, which exits with 128 plus the signal's number.

    number: the signal.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number


def require(package: str, key: str, extra: str) -> None:
    """Raises UserError, with the line that installs it, if a package that only `key` needs is not there."""
    if find_spec(package) is None:
        raise UserError(f'{key} needs {package}: pip install "vaelab[{extra}]"')
