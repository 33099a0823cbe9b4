"""Live through one seed of the simulation and print what happens: ``python -m tests.proof.simulation SEED``."""

import argparse
import tempfile
from functools import partial
from pathlib import Path

from tests.proof.simulation.forks import Job, live, templates
from tests.proof.simulation.mutants import MUTANTS
from tests.proof.simulation.plan import PROFILES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof.simulation", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--profile", choices=sorted(set(PROFILES)))
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="what to take away first")
    parser.add_argument("--scale", type=float, default=1.0, help="of the virtual time")
    parser.add_argument("--silent", action="store_true", help="only what came of it")
    given = parser.parse_args()
    job = Job(seed=given.seed, profile=given.profile, mutant=given.mutant, scale=given.scale)
    with tempfile.TemporaryDirectory() as near, templates(Path(near)) as folder:
        result = live(job, folder, trace=None if given.silent else partial(print, flush=True))
    print(result)
    return 1 if result.broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
