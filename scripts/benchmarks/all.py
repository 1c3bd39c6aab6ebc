"""Runs the benchmarks, each in a process of its own, and puts their tables into docs/performance.md.

    python scripts/benchmarks/all.py --root data     all of them; see the single scripts for what they measure
    python scripts/benchmarks/all.py startup         some of them
    python scripts/benchmarks/all.py --render        none: only the page, from the saved results

On the page a table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from common import HERE, RESULTS, markdown

PAGE = HERE.parents[1] / "docs" / "performance.md"
SCRIPTS = ("startup", "options", "quantizer", "scaling", "runs", "training", "variants", "sweeps", "streaming")
OWN = {
    "runs": ["root"],
    "training": ["root", "pythae", "accelerator"],
    "variants": ["root", "accelerator"],
    "sweeps": ["root"],
}
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(page: Path) -> None:
    """Rewrites the tables on a page that have a saved result."""

    def table(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        if not (RESULTS / f"{name}.json").exists():
            print(f"{page.name}: no result for the table {name}; it stays as it is", file=sys.stderr)
            return match.group()
        return f"{start}{markdown(name)}\n{end}"

    page.write_text(MARKED.sub(table, page.read_text()))


def flags(options: argparse.Namespace, script: str) -> list[str]:
    """Returns the command-line options that a script is given."""
    names = ["rounds", "threads", *OWN.get(script, [])]
    given = [f"--{name}={getattr(options, name)}" for name in names if getattr(options, name) is not None]
    switches = ["quick"] + (["all"] if script == "training" else [])
    return given + [f"--{name}" for name in switches if getattr(options, name)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", metavar="NAME", help=f"of {', '.join(SCRIPTS)}; all if none is named")
    parser.add_argument("--render", action="store_true", help="run nothing, only rewrite the page")
    parser.add_argument("--rounds", type=int, help="measured rounds (default: each script's own)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing saved: only to see that all run")
    parser.add_argument("--root", help="runs, training, variants and sweeps: where MNIST lies, as torchvision puts it")
    parser.add_argument("--all", action="store_true", help="training: the tutorial's loop for every variant")
    parser.add_argument("--pythae", metavar="PYTHON", help="training: a Python with pythae 0.1.2")
    parser.add_argument("--accelerator", help="training and variants: cpu or gpu")
    options = parser.parse_args()
    if unknown := set(options.scripts) - set(SCRIPTS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    failed = []
    for script in [] if options.render else options.scripts or SCRIPTS:
        command = [sys.executable, str(HERE / f"{script}.py"), *flags(options, script)]
        print("$ python", f"scripts/benchmarks/{script}.py", *flags(options, script), flush=True)
        if subprocess.run(command).returncode:
            failed.append(script)
    if PAGE.exists() and not options.quick:
        render(PAGE)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
