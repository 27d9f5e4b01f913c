"""Figures of the aggregator; `make bench` prints them."""
