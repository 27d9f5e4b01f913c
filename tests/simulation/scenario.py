"""What one seed stands for: the federation, the weather, and how often what breaks. Drawn once, before the run.

A storm of faults rages until `storm_ends` (simulated seconds); then the links are clean and everybody is alive again, and the
federation must finish its rounds within a bounded time.

    patient     goal = every device, no deadline within the run: no attempt is ever abandoned, so the final model must be the
                fault-free run's, byte for byte
    hasty       a part of the devices is enough and deadlines are short: attempts are abandoned, updates come late
"""

import random
from dataclasses import dataclass, replace

from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.messages import Link
from tests.simulation.network import Weather

CODECS = (
    CodecSpec(name="raw32"), CodecSpec(name="blk8"), CodecSpec(name="blk8", rounding="nearest"), CodecSpec(name="fp16"),
    CodecSpec(name="rot-4"), CodecSpec(name="ec-dither", bits=3), CodecSpec(name="lossless"), CodecSpec(name="auto", bits=4), CodecSpec(name="ring", bits=20, step=2.0**-12),
)  # fmt: skip
FEEDBACK = (
    CodecSpec(name="topk", fraction=0.05), CodecSpec(name="topk", fraction=0.3), CodecSpec(name="ec-dz", bits=0.25),
    CodecSpec(name="ec-dz", bits=1),
)  # fmt: skip
FOREVER = 10 * 86400.0  # seconds


@dataclass(frozen=True, slots=True)
class Faults:
    """Rates per process and simulated second while the storm rages; `crash_points` is the chance that a life is cut short
    in the middle of what it does, at one of its next `within` crash points."""

    crash_points: float = 0.0
    within: int = 60
    kills: float = 0.0
    partitions: float = 0.0
    full_disks: float = 0.0
    failing_disks: float = 0.0  # of devices: read-only for a while, or with errors
    amnesias: float = 0.0
    forgettings: float = 0.0  # of what is retained, all or a part, by a broker that goes on
    trainer_deaths: float = 0.0
    damages: float = 0.0  # of files and rows at rest
    full_cards: float = 0.0  # devices without the room that training needs, though what is written still fits
    losses: float = 0.0  # of co-signers, for good, as long as as many are left as heads need
    renewals: float = 0.0  # of devices' identities
    withdrawals: float = 0.0  # of versions, by an operator who stops the aggregator for it
    revocations: float = 0.0  # of one device, by the registrar
    power_cuts: float = 0.5  # share of crashes that lose what wasn't synced


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run. Times are in simulated seconds, sizes in floats and samples."""

    seed: int
    devices: int
    rounds: int
    length: int
    codec: CodecSpec
    then: CodecSpec | None  # what the operator changes the codec to; an aggregator that starts after `switch_at` has it
    switch_at: float
    patient: bool
    goal: int
    minimum: float
    over_selection: float
    deadline: float
    samples: tuple[int, ...]
    train_seconds: float
    straggler: int | None
    mad: int | None
    weather: Weather
    faults: Faults
    storm_ends: float
    clone: bool
    expires: float
    spool: int  # updates that a device keeps
    group_seconds: float
    link: Link
    cut: int  # bytes: how long the operator makes chunks; an aggregator that starts after `cut_at` cuts so
    cut_at: float
    mute: int | None  # a device that hears everything, and whose uploads never arrive while the storm rages
    cosigners: int  # machines whose signatures heads need beside the aggregator's: of one, or of any of two

    def calm(self) -> "Scenario":
        """The same federation on a fine day."""
        return replace(
            self, weather=Weather(), faults=Faults(), storm_ends=0.0, clone=False, straggler=None, mad=None, mute=None
        )


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    r = random.Random(f"scenario {seed}")
    devices = r.randint(6, 10)
    patient = seed % 2 == 0
    length = r.choice([320, 320, 20_000, 20_000, 40_000])
    codec = r.choice(CODECS if r.random() < 0.5 else FEEDBACK)
    storm = r.uniform(150, 400)
    forgetting = random.Random(f"forgetting {seed}").uniform(40, 400)
    cut = random.Random(f"cut {seed}")
    cosigners = random.Random(f"cosigners {seed}").choice([0, 0, 0, 1, 2])
    later = random.Random(f"mute {seed}")
    taken_back = random.Random(f"taken back {seed}")
    mute = later.randrange(devices) if not patient and later.random() < 0.2 else None
    scenario = Scenario(
        seed=seed,
        devices=devices,
        rounds=r.randint(3, 5),
        length=length,
        codec=codec,
        then=r.choice(CODECS + FEEDBACK) if not patient and r.random() < 0.7 else None,
        switch_at=r.uniform(0, storm / 2),
        patient=patient,
        goal=devices if patient else r.randint(2, devices - 3),
        minimum=1.0 if patient else r.choice([0.5, 0.8]),
        over_selection=1.0 if patient else 1.3,
        deadline=FOREVER if patient else r.uniform(15, 60),
        samples=tuple(r.randint(10, 400) for _ in range(devices)),
        train_seconds=r.uniform(0.5, 6),
        straggler=r.randrange(devices) if r.random() < (0.3 if patient else 0.7) else None,
        mad=r.randrange(devices) if not patient and r.random() < 0.6 else None,
        weather=Weather(
            drop=r.uniform(0, 0.3),
            repeat=r.uniform(0, 0.1),
            flip=r.choice([0.0, 0.01]),
            replay=r.choice([0.0, 0.01, 0.05]),
            median=r.choice([0.01, 0.1, 0.5]),
            sigma=r.choice([0.3, 1.0, 2.0]),
        ),
        faults=Faults(
            crash_points=r.choice([0.2, 0.5, 0.8]),
            within=r.choice([20, 60, 200]),
            kills=1 / r.uniform(80, 400),
            partitions=1 / r.uniform(80, 400),
            full_disks=1 / r.uniform(150, 600),
            failing_disks=1 / random.Random(f"failing disks {seed}").uniform(100, 600),
            amnesias=1 / r.uniform(100, 400),
            forgettings=1 / forgetting,
            trainer_deaths=1 / r.uniform(80, 400),
            damages=0.0 if patient else 1 / r.uniform(100, 1000),
            full_cards=0.0 if patient else 1 / later.uniform(100, 600),
            losses=1 / later.uniform(100, 1000),
            renewals=1 / random.Random(f"renewals {seed}").uniform(100, 1000),
            withdrawals=0.0 if patient else 1 / taken_back.uniform(20, 200),
            revocations=0.0 if patient else 1 / taken_back.uniform(20, 400),
        ),
        storm_ends=storm,
        clone=not patient and r.random() < 0.7,
        expires=r.choice([15.0, 60.0, 3600.0]),
        spool=r.choice([1, 2, 3, 3]),
        group_seconds=r.choice([0.05, 0.5, 3.0]),
        link=Link(chunk_bytes=r.choice([4096, 60 * 1024]), retained=r.random() < 0.75),
        cut=cut.choice([1024, 4096, 60 * 1024]),
        cut_at=cut.uniform(0, 2 * storm),
        mute=mute,
        cosigners=cosigners,
    )
    if mute is None:
        return scenario
    # Everybody is asked in each of five rounds, so that its updates pile up to the spool's cap.
    return replace(
        scenario, rounds=5, goal=devices - 1, codec=later.choice(CODECS), then=None, spool=3, train_seconds=1.0,
        straggler=None, clone=False,
    )  # fmt: skip
