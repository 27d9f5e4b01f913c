"""Boards, real and emulated."""
