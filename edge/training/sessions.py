"""Opens a plan's graphs in onnxruntime, with the options that training runs them with.

A plan of the profile cuda runs on the first GPU where onnxruntime has the provider (package onnxruntime-gpu) and the provider
starts, and on the CPU otherwise, with a log line. Batches, weights and gradients stay in the process's own memory in any case.
"""

from collections.abc import Sequence
from typing import Any

import onnxruntime as ort

from fleetgrad.edge.training.plan_dir import Plan
from fleetgrad.native import kernels
from fleetgrad.wire.log import log
from fleetgrad.wire.plan import PlanError

CPU: tuple[Any, ...] = ("CPUExecutionProvider",)
CUDA: tuple[Any, ...] = (("CUDAExecutionProvider", {"use_tf32": "0"}), *CPU)  # products in whole float32, as on the CPU

EDITION = 1  # of the options below: counts up with each change, since graphs are kept as they were optimised under them


def options(op_abi: int, threads: int) -> ort.SessionOptions:
    """Of every session that trains or evaluates; `op_abi` is 0 for graphs without the C core's ops."""
    found = ort.SessionOptions()
    found.intra_op_num_threads = threads
    found.inter_op_num_threads = 1
    found.log_severity_level = 4
    found.enable_mem_pattern = False  # its plan of buffers lies beside the arena: up to 1.7 times the memory
    found.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # gradients are used and gone a little earlier
    found.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Moving quantized pairs past a Transpose, onnxruntime 1.32 gives them another type; training reads the values between, too.
    found.add_session_config_entry("session.disable_quant_qdq", "1")
    if op_abi:
        found.register_custom_ops_library(kernels.custom_ops_library())
    return found


def open_session(plan: Plan, name: str, how: ort.SessionOptions) -> ort.InferenceSession:
    """The session of one of the plan's files; raises PlanError."""
    if plan.manifest.profile == "cuda":
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            log("cuda_absent", file=name, reason="this onnxruntime has no CUDAExecutionProvider: on the CPU")
        else:
            try:
                return _session(plan, name, how, CUDA)
            except PlanError as e:
                log("cuda_failed", file=name, reason=e)
    return _session(plan, name, how, CPU)


def _session(plan: Plan, name: str, how: ort.SessionOptions, providers: Sequence[Any]) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(plan.path(name)), how, providers=list(providers))
    except Exception as e:
        raise PlanError(f"plan {plan.directory}: onnxruntime can't load {name}: {first_line(e)}") from e


def first_line(error: Exception) -> str:
    """What onnxruntime says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
