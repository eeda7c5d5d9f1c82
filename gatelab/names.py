"""Names that several rooms must write alike."""

import re

SEARCH_SUFFIX = "-lr-tolerance"
"""Ends the name of a study that searches the learning rates of another."""

STUDY_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""Pattern of the whole name of a study, which names its folder."""

LONGEST_NAME = 255
"""Most characters that a file system takes for the name of a folder."""


def search_of(study: str) -> str:
    """Return the name of the study that searches the learning rates of a study; of a search, its own."""
    return study.removesuffix(SEARCH_SUFFIX) + SEARCH_SUFFIX


def can_name_a_study(name: object) -> bool:
    """Return whether a folder of studies can hold one of this name: none but such lies in it."""
    return isinstance(name, str) and len(name) <= LONGEST_NAME and re.fullmatch(STUDY_NAME, name) is not None
