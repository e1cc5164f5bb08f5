"""A run as one page for people: is it private, is it good, where is it bad, may it be handed out."""

from dp_sinkhorn.report.render import write_report

__all__ = ["write_report"]
