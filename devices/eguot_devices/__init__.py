"""Measure ISP files on a device: how fast, how much memory, how good a picture, in one run."""
