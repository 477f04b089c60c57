"""The four phases of a Bayer mosaic, by the colours at [0,0] [0,1] [1,0] [1,1]."""

RED_AT = {"RGGB": (0, 0), "GRBG": (0, 1), "GBRG": (1, 0), "BGGR": (1, 1)}
"""Row and column of red in a cell."""
CFA_PHASES = tuple(RED_AT)
