"""report.html: what a run gave and cost, as one file that needs nothing else."""

import html
import io
from pathlib import Path
from typing import Any

from fleetgrad.broker.watching import size
from fleetgrad.edge.training.scores import told
from fleetgrad.wire.messages import DeviceStatus, Metrics

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}"
    "th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto}"
)


def write(
    path: Path,
    title: str,
    settings: dict[str, object],
    rounds: list[Metrics],
    devices: list[DeviceStatus],
    fp32_bytes: int,
) -> None:
    """Writes the report. `fp32_bytes` is what one round's updates would have taken uncompressed."""
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        _table(["setting", "value"], [[key, str(value)] for key, value in settings.items()]),
        "<h2>Accuracy and loss</h2>",
        _accuracy_plot(rounds),
        "<h2>Bytes</h2>",
        _bytes_plot(rounds, fp32_bytes),
        "<h2>Rounds</h2>",
        _table(
            ["round", "version", "members", "accuracy", "loss", "scores", "codec", "bits", "up", "down", "seconds"],
            [
                [
                    str(r.round), str(r.version), str(r.members), "" if r.accuracy is None else f"{r.accuracy:.2%}",
                    "" if r.loss is None else f"{r.loss:.4f}", told(r.scores), r.codec, "" if r.bits is None else f"{r.bits:.3f}", size(r.bytes_up), size(r.bytes_down),
                    "" if r.seconds is None else f"{r.seconds:.2f}",
                ]
                for r in rounds
            ],
        ),
        "<h2>Devices</h2>",
        _table(
            ["device", "samples", "updates", "sent", "received", "last loss"],
            [
                [
                    d.device, str(d.samples), str(d.updates), size(d.bytes_up), size(d.bytes_down),
                    "" if d.loss is None else f"{d.loss:.4f}",
                ]
                for d in devices
            ],
        ),
        "</html>",
    ]  # fmt: skip
    path.write_text("\n".join(parts))


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def _accuracy_plot(rounds: list[Metrics]) -> str:
    figure, axis = _figure()
    at = [r.round for r in rounds]
    if any(r.accuracy is not None for r in rounds):
        axis.plot(
            at, [100 * (r.accuracy or 0) for r in rounds], marker="o", color="tab:blue", label="held-out accuracy"
        )
        axis.set_ylabel("accuracy, %")
        axis.legend(loc="center right")
        other = axis.twinx()
    else:
        other = axis
    other.plot(at, [r.loss for r in rounds], color="tab:orange", linestyle="--", label="loss")
    other.set_ylabel("loss")
    axis.set_xlabel("round")
    return _svg(figure)


def _bytes_plot(rounds: list[Metrics], fp32_bytes: int) -> str:
    figure, axis = _figure()
    at, up, down, plain = [], [], [], []
    total_up = total_down = 0
    for i, r in enumerate(rounds, 1):
        total_up, total_down = total_up + r.bytes_up, total_down + r.bytes_down
        at.append(r.round)
        up.append(total_up / 1e6)
        down.append(total_down / 1e6)
        plain.append(i * fp32_bytes / 1e6)
    axis.plot(at, up, marker="o", label="updates sent")
    axis.plot(at, down, label="models offered")
    axis.plot(at, plain, linestyle=":", color="grey", label="updates, if sent as fp32")
    axis.set_xlabel("round")
    axis.set_ylabel("MB, all devices, summed up")
    axis.legend()
    return _svg(figure)


def _figure() -> Any:  # matplotlib has no types
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="tight")
    axis = figure.add_subplot()
    axis.grid(alpha=0.3)
    return figure, axis


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg")
    text = out.getvalue()
    return text[text.index("<svg") :]
