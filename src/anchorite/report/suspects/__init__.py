"""Suspect labels: those that a detector, trained on this very data or not, contradicts; ranked, as page and CSV."""

from anchorite.report.suspects.looks import Look, Observer
from anchorite.report.suspects.page import suspects_page
from anchorite.report.suspects.ranking import KINDS, Ranking, Suspect, rank_suspects
from anchorite.report.suspects.table import as_csv

__all__ = ["KINDS", "Look", "Observer", "Ranking", "Suspect", "as_csv", "rank_suspects", "suspects_page"]
