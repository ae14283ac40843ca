"""What flagrelease refuses, and the exit code each refusal has.

Every error that a user can cause or meet is a `FlagReleaseError`. `flagrelease.cli.main` is the only place that turns
one into text and an exit code; anything else that escapes is a bug and shows its traceback.
"""

from __future__ import annotations

from pydantic import ValidationError


class FlagReleaseError(Exception):
    """Base of all refusals. The message names the tensor, the file and the rule where there is one."""

    exit_code = 1
    kind = "internal"


class UsageError(FlagReleaseError):
    """The command line or the recipe asks for something that does not exist or contradicts itself."""

    exit_code = 2
    kind = "usage"


class CheckpointError(FlagReleaseError):
    """The checkpoint is not what its headers, index and config say, or not what this tool can convert."""

    exit_code = 3
    kind = "checkpoint"


class ResourceError(FlagReleaseError):
    """Disk, memory or a device is missing, or an output folder belongs to something else."""

    exit_code = 4
    kind = "resource"


class VerificationError(FlagReleaseError):
    """A release is not what its manifest, its source or its format says."""

    exit_code = 5
    kind = "verification"


class NetworkError(FlagReleaseError):
    """A hub or an endpoint did not answer as its protocol says."""

    exit_code = 6
    kind = "network"


class LimitError(FlagReleaseError):
    """A limit that the user set, such as a time, was reached; the same command resumes."""

    exit_code = 8
    kind = "limit"


def first_problem(error: ValidationError, whole: str = "document") -> str:
    """The first thing that a data contract refuses, as "key.of.the.field: what is wrong".

    Args:
        whole: what to call the place where no single field is to blame.
    """
    first = error.errors(include_url=False)[0]
    problem = "Input should be an object" if first["type"] == "model_type" else first["msg"]  # pydantic names our class
    return f"{'.'.join(str(part) for part in first['loc']) or whole}: {problem}"
