"""What studies must agree in for their numbers to be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from analysis.study import Study, StudyError

#: What of the text must agree → how it is found in a study.
TEXT: dict[str, Callable[[Study], Any]] = {
    "text": lambda study: (study.spec["data"]["source"], study.resolved["text"]),
    "window length": lambda study: study.spec["data"]["window"],
    "evaluation windows": lambda study: study.spec["data"]["evaluation_windows"],
    "calibration windows": lambda study: study.spec["data"]["calibration_windows"],
}
#: The same, and that the very same windows were drawn: for what is measured on the calibration windows.
WINDOWS = TEXT | {"seeds": lambda study: study.spec["seeds"]}


def check_alike(studies: Sequence[Study], same: Mapping[str, Callable[[Study], Any]]) -> None:
    """Refuse studies that differ in what must agree.

    Raises
    ------
    StudyError
        If they do.
    """
    for what, of in same.items():
        values = list(dict.fromkeys(str(of(study)) for study in studies))
        if len(values) > 1:
            raise StudyError(
                f"these studies differ in their {what} ({'; '.join(values[:3])}), so their numbers can't be compared; "
                "give those that agree"
            )
