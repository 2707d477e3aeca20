"""Measure a push of random weights to a real SGLang server over every transport, beside its ceiling.

    python tools/bench_transports.py --save docs/benchmarks/bench_transports.json

The server has one rank, then two. Seconds are wall-clock, so other programs on the machine count: see
load_average. The best of `--repeats` pushes is the transport's; all are recorded, with and without comparing
checksums.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from gigpo_mega.arguments import COUNT
from gigpo_mega.program import run_main
from gigpo_mega.telemetry.provenance import provenance
from tools.records import parser, publish


def main() -> None:
    """Print a line per transport, and publish the record."""
    options = parser(__doc__)
    options.add_argument("--layers", type=COUNT, default=8, help="of about 3 million parameters each")
    options.add_argument("--bucket-mib", type=COUNT, default=32)
    options.add_argument("--repeats", type=COUNT, default=5)
    given = options.parse_args()
    from tools.bench.transports import bench  # torch: after the options

    made = provenance("sglang", "torch")
    with TemporaryDirectory() as folder:
        found = bench(Path(folder), given.layers, given.bucket_mib, given.repeats)
    for ranks, rows in ((1, found["transports"]), (2, found["two_ranks"])):
        for name, row in rows.items():
            speed = f"{row['gib_per_s']:.2f} GiB/s of {row['ceiling_gib_per_s']:.2f}"
            unchecked = f"without checksums {row['unchecked_seconds']:.3f} s"
            print(f"ranks {ranks}  {name:9} {row['seconds']:.3f} s, {speed}; {unchecked}")
    sizes = {"bucket_mib": given.bucket_mib, "repeats": given.repeats}
    publish({"benchmark": "transports", **made, **sizes, **found}, given)


if __name__ == "__main__":
    run_main(main)
