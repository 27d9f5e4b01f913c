"""Runs a plan: flat parameters, onnxruntime sessions, the fused update and evaluation."""
