"""Figures of the training engine; `make bench` prints them."""
