"""federation.toml: one federation's settings. Unknown and ill-typed keys are refused by name; paths are relative to the file."""

from pathlib import Path
from typing import Annotated, get_args

import msgspec
from msgspec import Meta

from fleetgrad.broker.attempt import RoundSettings
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.kit import MAX_SCALE
from fleetgrad.wire.loss import LossName, LossOptions
from fleetgrad.wire.messages import MAX_EXPIRES_SECONDS, Link, Name, Policy, Training
from fleetgrad.wire.mqtt import BrokerSettings
from fleetgrad.wire.plan import Gradients
from fleetgrad.wire.settings import SettingsError, load_toml, toml_lines
from fleetgrad.wire.strict import Strict

FILE = "federation.toml"
FOLDER = "aggregator"  # of the directory that 'fleetgrad new' makes
REGISTRAR_KEY, CA, TLS = "keys/registrar.pub", "keys/ca.pem", "keys/tls.pem"
EXAMPLE_DATA = (
    "# [data]                    # without it versions aren't evaluated; the file stays here",
    '# path = "eval.npz"',
    '# x = "x"',
    '# y = "y"',
    "# scale = 1.0",
    "# shape = [1, 28, 28]",
)


class Broker(BrokerSettings, frozen=True, kw_only=True):
    """Where the broker is and how it is used. `chunk_bytes`, unless it is the profile's, is under the broker's limit on messages by
    200 bytes at least; `reconnects` is how many devices may come back in a second after the broker was gone."""

    url: str = "mqtts://localhost:8883"
    chunk_bytes: Annotated[int, Meta(ge=1024, le=120 * 1024)] | None = None
    reconnects: Annotated[float, Meta(ge=0.1, le=1e6)] = 50.0

    def link(self) -> Link:
        """What a head says of it."""
        row = self.row()
        return Link(chunk_bytes=self.chunk_bytes or row.chunk_bytes, retained=row.retained != "none")


class Data(Strict, frozen=True, kw_only=True):
    """What the aggregator evaluates each version on; never sent to anyone."""

    path: str
    x: str = "x"
    y: str = "y"
    scale: Annotated[float, Meta(gt=0, le=MAX_SCALE)] = 1.0
    shape: tuple[int, ...] | None = None


class Round(Strict, frozen=True, kw_only=True):
    """`goal` 0 means every device of the roster; `minimum` is the fraction of it that a deadline accepts; seconds.

    A device that hears of no new head for `expires` takes up no training; heads are signed anew four times as often.
    """

    rounds: Annotated[int, Meta(ge=1, le=1_000_000)] = 15
    goal: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    minimum: Annotated[float, Meta(gt=0, le=1)] = 0.8
    over_selection: Annotated[float, Meta(ge=1, le=10)] = 1.3
    deadline: Annotated[float, Meta(gt=0, le=30 * 86400)] = 600.0
    expires: Annotated[float, Meta(ge=60, le=MAX_EXPIRES_SECONDS)] = 86400.0


class Settings(Strict, frozen=True, kw_only=True):
    """The whole file."""

    name: Name
    model: str = "model.onnx"
    loss: LossName = "cross-entropy"
    loss_options: LossOptions = LossOptions()
    gradients: Gradients = "int8"
    broker: Broker = Broker()
    training: Training = Training()
    codec: CodecSpec = CodecSpec(name="blk8")
    round: Round = Round()
    data: Data | None = None

    def round_settings(self) -> RoundSettings:
        """What the round machine needs of it."""
        r, b = self.round, self.broker
        policy = Policy(codec=self.codec, **msgspec.structs.asdict(self.training))
        return RoundSettings(
            self.name, policy, r.rounds, r.goal, r.minimum, r.over_selection, r.deadline,
            link=b.link(), reconnects=b.reconnects, expires=r.expires,
        )  # fmt: skip


def home(directory: Path) -> Path:
    """The aggregator's folder: `directory`, or the one in it; raises SettingsError."""
    for folder in (directory, directory / FOLDER):
        if (folder / FILE).is_file():
            if not (folder / REGISTRAR_KEY).is_file():
                raise SettingsError(
                    f"{folder} has no {REGISTRAR_KEY}, so nobody can say who its devices are. If it is lost, copy the registrar's registrar.pub "
                    f"there; a folder made by an older version never had it: make a new federation from {folder / 'model.onnx'} by 'fleetgrad new'"
                )
            return folder
    raise SettingsError(f"{directory} holds no {FILE}: 'fleetgrad new {directory} --model MODEL.onnx' makes one")


def load(directory: Path) -> Settings:
    """The settings of an aggregator's folder; raises SettingsError."""
    return load_toml(directory / FILE, Settings)


def check(settings: Settings) -> None:
    """Raises SettingsError for a value that `load` would refuse: a struct made in code has met no bounds yet."""
    try:
        msgspec.convert(msgspec.to_builtins(settings), Settings, strict=True)
    except msgspec.ValidationError as e:
        what, _, at = str(e).partition(" - at `$.")
        raise SettingsError(f"setting {at.rstrip('`')}: {what[:1].lower()}{what[1:]}") from e


def write(settings: Settings, directory: Path) -> None:
    """Writes federation.toml with a comment on each table."""
    lines = [
        f'name = "{settings.name}"',
        f'model = "{settings.model}"',
        f'loss = "{settings.loss}"            # {" | ".join(get_args(LossName))}',
        f'gradients = "{settings.gradients}"          # int8 | fp32; model, loss and gradients are compiled into plan/',
        *_options(settings.loss_options),
        "",
        "[broker]",
        *toml_lines(settings.broker),
        "",
        "[training]                  # what every device does in a round",
        *toml_lines(settings.training),
        "",
        "[codec]                     # how updates travel; a change holds from the next round on, devices needn't be touched",
        "    # auto       bits = 2, or bytes = 400_000 an update: small tensors in fp16, the rest at one rate",
        "    # ec-dither  bits = 2: all at one rate        ec-dz  bits = 0.25: for devices that take part in every round",
        "    # topk       fraction = 0.01                  rot-1 .. rot-8, blk8, blk4, fp16, raw32, lossless, ring",
        *toml_lines(settings.codec),
        "",
        "[round]                     # goal 0: every device of the roster; deadline in seconds",
        *toml_lines(settings.round),
    ]
    if settings.data:
        lines += ["", "[data]                      # what each version is evaluated on, here and nowhere else"]
        lines += toml_lines(settings.data)
    else:
        lines += ["", *EXAMPLE_DATA]
    (directory / FILE).write_text("\n".join(lines) + "\n")


def _options(options: LossOptions) -> list[str]:
    found = toml_lines(options)
    return ["", "[loss-options]              # compiled into plan/ too", *found] if found else []
