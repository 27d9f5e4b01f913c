"""The demo's display: a bar per round, a line per device; plain lines, one a round, where there is no terminal."""

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from fleetgrad.broker.watching import DevicesTable, View, headline, size
from fleetgrad.edge.training.scores import told
from fleetgrad.wire.messages import Metrics

BARS = 15  # rounds in sight; older ones scroll away


class Screen:
    """Shows a view of the fleet each time `update` is called."""

    def __init__(self, console: Console, rounds: int) -> None:
        self._console, self._rounds = console, rounds
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[told]}"),
            console=console,
        )  # fmt: skip
        self._tasks: dict[int, TaskID] = {}
        self._closed: set[int] = set()
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Screen":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, view: View) -> None:
        """Draws what is new."""
        for number in sorted(set(view.metrics) - self._closed):
            self._close(number, view.metrics[number])
        if self._live is None:
            return
        if (a := view.aggregator) and a.round and a.round not in self._closed:
            self._bars.update(self._task(a.round), completed=a.received, total=a.goal, told=a.state)
        self._live.update(Group(self._bars, headline(view), DevicesTable(view)))

    def _task(self, number: int) -> TaskID:
        if number not in self._tasks:
            self._tasks[number] = self._bars.add_task(f"round {number:3d}", total=None, told="")
            if len(self._tasks) > BARS:
                self._bars.remove_task(self._tasks.pop(min(self._tasks)))
        return self._tasks[number]

    def _close(self, number: int, row: Metrics) -> None:
        self._closed.add(number)
        told = line(row)
        if self._live is None:
            self._console.print(f"round {number:3d}/{self._rounds}  {told}", highlight=False)
        else:
            self._bars.update(self._task(number), completed=row.members, total=row.members, told=told)


def line(row: Metrics) -> str:
    """A closed round in words."""
    accuracy = "" if row.accuracy is None else f"accuracy {row.accuracy:6.2%}  "
    loss = "" if row.loss is None else f"loss {row.loss:.4f}  "
    bits = "" if row.bits is None else f"  {row.bits:.3f} bits"
    took = "" if row.seconds is None else f"  {row.seconds:.2f} s"
    more = f"{told(row.scores)}  " if row.scores else ""
    return f"{accuracy}{loss}{more}up {size(row.bytes_up)}{bits}{took}"
