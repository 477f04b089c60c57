"""The committee of experts: fixed transforms, each judged by a small discriminator of its own (METHOD.md 3).

Colour, structure and frequency each see one way a rendering can go wrong and are blind to the others.
"""

from .base import Expert
from .colour import ColourExpert
from .committee import Committee
from .frequency import FrequencyExpert
from .structure import StructureExpert

__all__ = ["ColourExpert", "Committee", "Expert", "FrequencyExpert", "StructureExpert"]
