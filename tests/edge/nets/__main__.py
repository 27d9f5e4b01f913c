"""Prints the table of all nets against torch; the exit code is 1 where one isn't as promised."""

import sys
import time

import numpy as np

from tests.edge.nets import NETS
from tests.edge.nets.holding import EXPORTERS, KINDS, LOW, MEDIAN, exported, hold, reference

HEAD = ("net", "exporter", "profile", "weights", "error", "bound", "cosine", "lowest", "curve", "loss", "seconds")
LINE = "{:<22} {:<9} {:<16} {:>8} {:>8} {:>8} {:>9} {:>9} {:>7} {:>14} {:>7}"


def main() -> int:
    print(LINE.format(*HEAD))
    wrong = 0
    for net in [NETS[name] for name in sys.argv[1:]] or NETS.values():
        started = time.perf_counter()
        exact = reference(net)
        count = sum(v.size for v in exact.values.values())
        print(
            f"{net.name:<22} torch in float32: error {exact.error:.1e}, curve {exact.curve:.2%}, {time.perf_counter() - started:.1f} s",
            flush=True,
        )
        for exporter in EXPORTERS:
            started = time.perf_counter()
            try:
                model = exported(net, exporter)
            except Exception as e:  # noqa: BLE001 - whatever it is, it is a line of the table
                print(
                    f"{net.name:<22} {exporter:<9} can't be exported: {str(e).strip().splitlines()[0][:200]}",
                    flush=True,
                )
                continue
            spent = time.perf_counter() - started
            for profile, kind in KINDS:
                label = f"{profile} {kind}"
                started = time.perf_counter() - spent
                spent = 0
                try:
                    f = hold(net, model, exact, profile, kind)
                except Exception as e:  # noqa: BLE001 - whatever it is, it is a line of the table
                    print(f"{net.name:<22} {exporter:<9} {label:<16} {type(e).__name__}: {str(e)[:300]}", flush=True)
                    wrong += 1
                    continue
                cells = (net.name, exporter, label, count, f"{f.error:.1e}", f"{f.bound:.1e}",
                         f"{np.median(f.cosines):.6f}", f"{np.percentile(f.cosines, 5):.6f}", f"{f.curve:.2%}",
                         f"{f.first:.3f} {f.last:.3f}", f"{time.perf_counter() - started:.1f}")  # fmt: skip
                faults = f.faults(net, kind)
                wrong += bool(faults)
                known = "" if f.promised else f"  cosines below the promised {MEDIAN}, {LOW}"
                print(LINE.format(*cells) + ("  <- " + "; ".join(faults) if faults else known), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
