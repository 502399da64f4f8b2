"""What a command can end with besides success: a user's mistake, a training that stopped, and the exit code of each.

0    done
1    the loss is not finite, or a bug, which shows its traceback
2    a user's mistake, or what a new start does not mend (a full disk, say): one line
3    what starting all processes again may mend: a file that could not be read, a process that died or made no progress
130  interrupted
"""

import errno

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAULTS = (  # of a disk or a network that does not answer, and may do so again
    *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT),
    *(errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNRESET),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
)
LOST = 3  # exit code of what starting all processes again may mend


class UserError(ValueError):
    """A user's mistake. Commands print its line and exit with 2; any other error shows its traceback."""


class MissingFile(UserError, FileNotFoundError):
    """A file or folder that the user named is not there."""


class FileInTheWay(UserError, FileExistsError):
    """A file or folder stands where the user wants another written."""


class Damaged(UserError):
    """A file that others wrote is broken or gone."""


class WriteFailed(OSError):
    """A write failed, as `line` says; `errno` is the system's number of the reason, None where that is not known."""

    def __init__(self, line: str, errno: int | None = None):
        super().__init__(line)
        self.errno = errno


class CopiesDiffer(RuntimeError):
    """What several devices hold copies of is not the same on all of them."""


class TrainingStopped(WriteFailed):
    """A training stopped at a failed read or write, or as copies differ; started again, it goes on from a checkpoint."""


class LossNotFinite(FloatingPointError):
    """The loss or the norm of its gradient is not finite, so that training stopped."""


# What commands print as one line; an optional package that is missing is a ModuleNotFoundError.
EXPECTED = (UserError, OSError, LossNotFinite, ModuleNotFoundError)


def exit_code(error: BaseException) -> int:
    """What a process ends with by an error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    stopped = isinstance(error, TrainingStopped) and error.errno not in NO_SPACE  # which needs somebody to mend it
    if isinstance(error, TimeoutError) or stopped or getattr(error, "errno", None) in FAULTS:
        return LOST
    return 2 if isinstance(error, (UserError, OSError, ModuleNotFoundError)) else 1


def one_line(error: BaseException) -> str:
    """An error's text, or what it is."""
    return " ".join(str(error).split())[:500] or type(error).__name__
