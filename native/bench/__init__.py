"""Figures of the C core; `make bench` prints them."""
