"""Grading: whether every result that strategies give here keeps the bound they declare.

``trials`` says what is put to them, ``oracle`` judges each element, ``grader`` keeps score,
``scorecard`` prints it.
"""

from autogemm.grading.grader import NETLIB_THRESHOLD, Breach, Grades, Score, grade
from autogemm.grading.scorecard import as_markdown, as_text, verdict
from autogemm.grading.side_by_side import grade_side_by_side
from autogemm.grading.trials import EXTENTS

__all__ = [
    "EXTENTS",
    "NETLIB_THRESHOLD",
    "Breach",
    "Grades",
    "Score",
    "as_markdown",
    "as_text",
    "grade",
    "grade_side_by_side",
    "verdict",
]
