"""Errors that commands report on one line, without a traceback."""


class PlasticityError(ValueError):
    """
    An error that the user can correct. The message is one line with the setting, its value and a valid alternative.
    Commands exit with status 2.
    """


class TrainingInterrupted(Exception):
    """
    A run was stopped by a signal.

    Args:
        message (`str`): The step at which it stopped, and how to resume.
        signum (`int`): The signal, `signal.SIGINT` or `signal.SIGTERM`.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum

    @property
    def exit_status(self) -> int:
        """130 after Ctrl-C and 143 after SIGTERM, as in a shell."""
        return 128 + self.signum


def one_line(error: BaseException) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__
