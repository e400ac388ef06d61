"""What goes wrong in the lab, each in one sentence for a person."""


class LabError(Exception):
    """The lab did not do what it should."""


class LabUnavailable(LabError):
    """This machine cannot run the lab: a program, a package or a right is missing."""
