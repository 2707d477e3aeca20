"""Play one collection in virtual time: engines that were never bought, scheduled by the real fleet.

    python tools/simulate.py --save docs/benchmarks/simulation.json

Shows what scheduling makes of assumed service times: lock step against independent episodes, one engine
against many, by how many requests in flight an engine must lead before an episode moves, what groups beyond
those needed (rollout.oversample) save, and what rollouts ahead of the learner (rollout.max_staleness) save.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gigpo_mega.arguments import COUNT
from gigpo_mega.program import run_main
from gigpo_mega.telemetry.provenance import provenance
from tools.records import parser, publish

IMBALANCES = (0, 1, 2, 4, 8, 16, 64)
AHEAD = (0, 8, 16, 32, 64)
UPDATES = (10.0, 30.0, 60.0, 120.0)  # seconds; a rollout takes some 80
STALENESS = (0, 1, 2)


def main() -> None:
    """Print a line per schedule, and publish the record."""
    options = parser(__doc__)
    options.add_argument("--engines", type=COUNT, default=64)
    options.add_argument("--episodes", type=COUNT, default=4096)
    given = options.parse_args()
    publish(measure(given.engines, given.episodes), given)


def measure(engines: int, episodes: int) -> dict[str, Any]:
    """Simulate and print all schedules."""
    from tools.bench.simulation import Service, Workload, simulate

    service, work, each = Service(), Workload(episodes=episodes), -(-episodes // engines)
    one = Workload(episodes=each)
    runs = {
        "one engine": simulate(1, one, service, each),
        "one engine, lock step": simulate(1, one, service, each, lock_step=True),
        "lock step": simulate(engines, work, service, episodes, lock_step=True),
        "one failure": simulate(engines, work, service, episodes, failures=1),
    }
    for name, found in runs.items():
        print(f"{name:24} {found}")
    sweep: list[dict[str, float]] = []
    for imbalance in IMBALANCES:
        found = simulate(engines, work, service, episodes, imbalance=imbalance)
        sweep.append({"imbalance": imbalance, **found})
        print(f"moves past {imbalance:>2} requests   {found}")
    aheads: list[dict[str, float]] = []
    for ahead in AHEAD:
        more = Workload(episodes=episodes, ahead=ahead)
        found = simulate(engines, more, service, episodes + ahead * work.group)
        aheads.append({"groups": ahead, **found})
        print(f"{ahead:>2} groups ahead         {found}")
    return {
        "benchmark": "simulation",
        **provenance("numpy"),
        "engines": engines,
        "service": asdict(service),
        "workload": asdict(work),
        "runs": runs,
        "sweep": sweep,
        "ahead": aheads,
        "staleness": staleness(),
    }


def staleness() -> list[dict[str, float]]:
    """Simulate and print runs of 8 iterations of 1,024 episodes on 16 engines, by the length of an update."""
    from tools.bench.simulation import Service, Training, Workload, train

    found: list[dict[str, float]] = []
    for update in UPDATES:
        for bound in STALENESS:
            row = train(16, Workload(episodes=1024), Service(), Training(bound, update))
            found.append({"update_seconds": update, "max_staleness": bound, **row})
            print(f"update {update:g} s, staleness {bound}   {row}")
    return found


if __name__ == "__main__":
    run_main(main)
