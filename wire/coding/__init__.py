"""Codecs of the flat vector: what a policy may ask for (spec), how a plan lays the vector out (layout), and a file per family."""
