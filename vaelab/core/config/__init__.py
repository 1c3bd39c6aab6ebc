"""A config: resolved, checked against what it builds, and built."""

from vaelab.core.config.building import build, target_of
from vaelab.core.config.checking import check, check_keys, options
from vaelab.core.config.resolving import resolved

__all__ = ["build", "check", "check_keys", "options", "resolved", "target_of"]
