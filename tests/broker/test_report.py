"""report.html stands alone and holds every figure; text in it can't become markup."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from fleetgrad.broker import report
from fleetgrad.wire.messages import DeviceStatus, Metrics


def row(number: int, accuracy: float | None = 0.5, loss: float | None = 1.25, seconds: float | None = 1.5) -> Metrics:
    return Metrics(
        round=number, version=number, members=2, accuracy=accuracy, loss=loss, bytes_up=1_500, bytes_down=2_000_000,
        seconds=seconds,
    )  # fmt: skip


def device(name: str) -> DeviceStatus:
    return DeviceStatus(
        state="idle", device=name, boot=1, samples=123, updates=2, bytes_up=750, bytes_down=1_000, loss=0.75
    )


class Page(HTMLParser):
    """Collects tags, what they would load, and cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        wanted = {"src", "href", "xlink:href"}
        self.loads += [
            value for name, value in attrs if name in wanted and value and not value.startswith(("#", "data:"))
        ]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(data.strip())


def written(tmp_path: Path, rows: list[Metrics], title: str = "a run") -> Page:
    report.write(tmp_path / "r.html", title, {"codec": "blk8 & more"}, rows, [device("dev-1")], 8_000)
    return Page((tmp_path / "r.html").read_text())


def test_the_report_holds_curves_rounds_devices_and_settings_and_loads_nothing(tmp_path: Path) -> None:
    page = written(tmp_path, [row(1), row(2, accuracy=0.9625)])
    assert page.tags.count("svg") == 2
    assert page.loads == []
    assert "script" not in page.tags
    for text in ("codec", "blk8 & more", "96.25%", "1.2500", "1.5 kB", "2.0 MB", "dev-1", "123", "0.7500"):
        assert text in page.text, text


@pytest.mark.parametrize(
    "rows", [[], [row(1, accuracy=None)], [row(1, None, None, None)]], ids=["none", "no accuracy", "only bytes"]
)
def test_what_was_not_measured_is_left_out(tmp_path: Path, rows: list[Metrics]) -> None:
    page = written(tmp_path, rows)
    assert page.tags.count("svg") == 2
    assert "nan" not in " ".join(page.text).lower()
    assert "None" not in page.text


def test_a_title_is_text_not_markup(tmp_path: Path) -> None:
    page = written(tmp_path, [row(1)], title="<script>alert(1)</script>")
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text
