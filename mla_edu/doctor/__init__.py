"""What a cache should weigh, and which known mistake explains another figure. Needs no torch."""

from mla_edu.doctor.diagnosis import TOLERANCE, Diagnosis, Explanation, diagnose
from mla_edu.doctor.figures import Figure, parse_figure
from mla_edu.doctor.logs import Reading, read_log

__all__ = ["TOLERANCE", "Diagnosis", "Explanation", "Figure", "Reading", "diagnose", "parse_figure", "read_log"]
