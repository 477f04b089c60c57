"""Shrink a trained ISP and turn it into files that phones and boards run."""
