"""One engine in a process of its own, which makes training steps when it is told to: its peak memory is then its own.

    python -m fleetgrad.edge.bench.engine plan DIRECTORY BATCH.npz      our plan; plan-sgd: with plain SGD
    python -m fleetgrad.edge.bench.engine torch MODEL BATCH.npz         a model of models.py in torch, eager
    python -m fleetgrad.edge.bench.engine profile DIRECTORY BATCH.npz   the ops that take most of a plan's step
    PYTHON edge/bench/engine.py artifacts DIRECTORY MODEL.onnx          makes onnxruntime-training's artifacts, which
    PYTHON edge/bench/engine.py onnxruntime-training DIRECTORY BATCH.npz    this trains; PYTHON is of its environment

A line on stdin with a number of seconds is answered by a line of JSON: the fastest step of that turn and the first step's loss.
The end of stdin is answered by the peak of the resident memory. A step is forward, backward and SGD with momentum, which
onnxruntime-training hasn't: its SGD is plain, and plan-sgd's too. Its environment has nothing of fleetgrad, so this file runs there as a script.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

RATE, MOMENTUM = 1e-4, 0.9
PROFILED_STEPS = 10
UNUSED = (
    "amp",
    "optim",
    "ortmodule",
)  # packages of onnxruntime.training that import torch, and need more memory for it
ERRORS_ONLY = 3  # onnxruntime's severity
Step = Callable[[], float]


def of_plan(directory: Path, x: np.ndarray, y: np.ndarray, momentum: bool = True) -> Step:
    """One step of a plan."""
    from fleetgrad.edge.training.plan_dir import open_plan
    from fleetgrad.edge.training.trainer import Trainer
    from fleetgrad.native import optimizers

    trainer = Trainer(open_plan(directory))
    flat, gradient, *moments = trainer.vectors()
    optimizer = optimizers.Optimizer("momentum" if momentum else "sgd", RATE, momentum=MOMENTUM)
    moments = moments if momentum else []

    def step() -> float:
        loss = trainer.step(x, y)
        optimizers.step(optimizer, flat, gradient, *moments)
        return loss

    return step


def of_torch(name: str, x: np.ndarray, y: np.ndarray) -> Step:
    """The same step in torch, whose SGD goes over all tensors at once."""
    import torch

    from fleetgrad.edge.bench.models import TASKS

    torch.set_num_threads(1)
    module = TASKS[name].module()
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=MOMENTUM, foreach=True)
    measure = torch.nn.CrossEntropyLoss()
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)

    def step() -> float:
        optimizer.zero_grad()
        loss = measure(module(inputs), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _training_api() -> Any:
    """onnxruntime, with what trains of onnxruntime.training and nothing else of it."""
    for name in UNUSED:
        sys.modules[f"onnxruntime.training.{name}"] = ModuleType(name)
    import onnxruntime
    import onnxruntime.training.api

    onnxruntime.set_default_logger_severity(ERRORS_ONLY)
    return onnxruntime


def make_artifacts(directory: Path, file: Path) -> None:
    """Training graph, optimizer and checkpoint of an ONNX model, all of whose float32 weights are trained, for cross-entropy."""
    _training_api()
    import onnx
    from onnxruntime.training import artifacts

    model = onnx.load(file)
    running: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if node.op_type == "LayerNormalization":  # its gradient reads the optional outputs
            node.output.extend([f"mean_{number}", f"deviation_{number}"][len(node.output) - 1 :])
        if node.op_type == "BatchNormalization":
            running.update(node.input[3:5])
    floats = {w.name for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT}
    artifacts.generate_artifacts(
        model, requires_grad=sorted(floats - running), frozen_params=sorted(running), artifact_directory=directory,
        loss=artifacts.LossType.CrossEntropyLoss, optimizer=artifacts.OptimType.SGD,
    )  # fmt: skip


def of_artifacts(directory: Path, x: np.ndarray, y: np.ndarray) -> Step:
    """The step of onnxruntime-training; without its evaluation graph, which batch normalisation makes invalid."""
    onnxruntime = _training_api()
    api, options = onnxruntime.training.api, onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    state = api.CheckpointState.load_checkpoint(str(directory / "checkpoint"))
    module = api.Module(str(directory / "training_model.onnx"), state, session_options=options)
    optimizer = api.Optimizer(str(directory / "optimizer_model.onnx"), module)
    optimizer.set_learning_rate(RATE)

    def step() -> float:
        loss = module(x, y)
        optimizer.step()
        module.lazy_reset_grad()
        return float(loss)

    return step


def profile(directory: Path, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Share of the nodes' time by op type, most first."""
    import onnxruntime as ort

    from fleetgrad.edge.training.plan_dir import open_plan
    from fleetgrad.edge.training.trainer import Trainer

    class Profiled(Trainer):
        def _options(self) -> ort.SessionOptions:
            options = super()._options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            return options

    with tempfile.TemporaryDirectory() as folder:
        trainer = Profiled(open_plan(directory))
        for _ in range(PROFILED_STEPS):
            trainer.step(x, y)
        events = json.loads(Path(trainer._train.end_profiling()).read_text())
    total = Counter[str]()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            total[event["args"]["op_name"]] += event["dur"]
    return {op: spent / max(total.total(), 1) for op, spent in total.most_common()}


def peak_megabytes() -> float:
    """Of this process since it was started (ru_maxrss has the parent's too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    kind, what, file = sys.argv[1:]
    if kind == "artifacts":
        make_artifacts(Path(what), Path(file))
        return
    with np.load(file) as arrays:
        x, y = arrays["x"], arrays["y"]
    if kind == "profile":
        print(json.dumps(profile(Path(what), x, y)))
        return
    match kind:
        case "plan" | "plan-sgd":
            step = of_plan(Path(what), x, y, momentum=kind == "plan")
        case "onnxruntime-training":
            step = of_artifacts(Path(what), x, y)
        case _:
            step = of_torch(what, x, y)
    loss = step()
    step()
    print(json.dumps({"loss": loss}), flush=True)
    for line in sys.stdin:
        end, best = time.perf_counter() + float(line), float("inf")
        step()  # brings the caches back
        while True:
            start = time.perf_counter()
            step()
            now = time.perf_counter()
            best = min(best, now - start)
            if now >= end:
                break
        print(json.dumps({"seconds": best}), flush=True)
    print(json.dumps({"megabytes": peak_megabytes()}), flush=True)


if __name__ == "__main__":
    main()
