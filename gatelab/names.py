"""Names that several rooms must write alike."""

SEARCH_SUFFIX = "-lr-tolerance"
"""Ends the name of a study that searches the learning rates of another."""


def search_of(study: str) -> str:
    """Return the name of the study that searches the learning rates of a study; of a search, its own."""
    return study.removesuffix(SEARCH_SUFFIX) + SEARCH_SUFFIX
