"""What is wrong with one input file and no other: an error that names it, so that a run can go on without it."""

from __future__ import annotations

from fmscale.errors import DataError


class DamagedInput(DataError):
    """An input file that cannot be read to its end, or is not what it was. Nothing that was read of it may be used."""

    def __init__(
        self, what: str, *, name: str = "", expected: str = "", found: str = "", do: str = "", passing: bool = False
    ) -> None:
        super().__init__(what, expected=expected, found=found, do=do)
        self.name = name
        """Of the file, as in `InputFile.name`."""
        self.passing = passing
        """Whether reading it again may help: the store or the disk failed, not the bytes."""
        self.place = -1
        """Of the piece that was being read, in its task."""


def changed(name: str, expected: str, found: str) -> DamagedInput:
    return DamagedInput(
        "an input file changed while the corpus was being prepared",
        name=name,
        expected=f"{name} with {expected}",
        found=found,
        do="put the old file back, or run the command again once the inputs are still",
    )


def damaged(name: str, expected: str, found: str) -> DamagedInput:
    return DamagedInput(
        "an input is damaged",
        name=name,
        expected=expected,
        found=f"{name}: {found}",
        do="fetch it again, or leave it out of inputs",
    )


def too_large(name: str, expected: str, found: str, do: str) -> DamagedInput:
    return DamagedInput(
        "an input would take too much memory", name=name, expected=expected, found=f"{name}: {found}", do=do
    )


def no_text_column(name: str, kind: str, text: str, columns: str) -> DamagedInput:
    return DamagedInput(
        f"a {kind} has no such text",
        name=name,
        expected=f"a column `{text}` of strings",
        found=f"{name} with {columns}",
        do="set text_field to the input's own name",
    )
