"""The images that a training meets and cannot use."""

from __future__ import annotations

from collections.abc import Mapping

from image_classifier.contract.errors import DataError
from image_classifier.contract.text import as_text
from image_classifier.vision.contrast import contrast_findings
from image_classifier.vision.findings import DataFinding, listing
from image_classifier.vision.folders import Split, name_in


class BadImages:
    """The images met so far that cannot be read, or show next to nothing: each is named once in the log; too many of
    the former end the job."""

    def __init__(
        self, limit: int, found: Mapping[str, str] | None = None, contrast: Mapping[str, str] | None = None
    ) -> None:
        self.found = dict(found or {})  # path -> reason
        self.contrast = dict(contrast or {})  # as `name_in` -> `contrast_of`
        self._limit = limit
        self._said = 0

    def add(self, split: Split, unreadable: Mapping[int, str]) -> list[str]:
        """Takes down the unreadable images of one batch and returns the reasons not heard before.

        Raises:
            DataError: more than `limit` distinct files cannot be read.
        """
        new = {as_text(split.paths[index]): reason for index, reason in unreadable.items()}
        new = {path: reason for path, reason in new.items() if path not in self.found}
        self.found.update(new)
        if len(self.found) > self._limit:
            raise DataError(
                f"{len(self.found)} images cannot be read, more than max_bad_images={self._limit}; "
                f"the last: {next(reversed(self.found.values()))}",
                "repair or remove the files named in bad_images.json, or raise max_bad_images",
            )
        return list(new.values())

    def note(self, split: Split, contrast: Mapping[int, str]) -> None:
        """Takes down the images of one batch that show next to nothing."""
        self.contrast.update((name_in(split, split.paths[index]), kind) for index, kind in contrast.items())

    def findings(self) -> list[DataFinding]:
        """What is to be said of the images that show next to nothing."""
        return list(contrast_findings(self.contrast))

    def new_findings(self) -> list[DataFinding]:
        """The same, if there are more than at the last call."""
        said, self._said = self._said, len(self.contrast)
        return self.findings() if self._said > said else []

    def require_classes(self, split: Split) -> None:
        """Raises DataError when a class of a split whose files were all opened has no image that can be read."""
        if not self.found:
            return
        read = {label for path, label in zip(split.paths, split.labels, strict=True) if as_text(path) not in self.found}
        lost = {split.class_of(index) for index, label in enumerate(split.labels) if label not in read}
        if lost:
            what = f"no image of {listing(sorted(lost))} in {split.name} can be read"
            raise DataError(what, "bad_images.json names the reasons; repair them, or remove the class in every split")
