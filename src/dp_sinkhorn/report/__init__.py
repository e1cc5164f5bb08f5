"""The report on a run: one HTML page that says whether it is private and good, and what may be handed out."""

from dp_sinkhorn.report.render import write_report

__all__ = ["write_report"]
