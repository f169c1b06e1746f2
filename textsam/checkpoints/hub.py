"""Files from the Hugging Face Hub, and in plain words why they could not be had."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_repo_id(name: str) -> bool:
    """Whether `name` has the form of a Hub id, organisation/name."""
    return _REPO_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def download(repo_id: str, allow_patterns: Sequence[str]) -> Path:
    """The folder in the local cache that holds the files of a Hub repository that match `allow_patterns`.

    What is cached is not downloaded again, and serves offline. HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are
    honoured by the client.

    Raises:
        FileNotFoundError: the Hub has no such repository (or hides it).
        PermissionError: the repository is gated or closed to this account.
        ConnectionError: offline, or the Hub failed.
        OSError: anything else that kept a file from arriving whole, such as a full disk.
        In each of them `__cause__` is the client's own error.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(allow_patterns)))
    except Exception as error:  # The client's errors share no base class narrower than this.
        raise _explain(repo_id, error) from error


def _explain(repo_id: str, error: Exception) -> OSError:
    from huggingface_hub import constants, errors

    where = f"{constants.ENDPOINT}/{repo_id}"
    answer = next((each for each in _causes(error) if isinstance(each, errors.HfHubHTTPError)), None)
    status = None if answer is None else answer.response.status_code
    if isinstance(answer, errors.GatedRepoError):
        return PermissionError(
            f"{repo_id} is gated: accept its terms on {where}, then log in with `hf auth login` or set HF_TOKEN."
        )
    if isinstance(answer, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{repo_id} was not found: there is no such folder here, and the Hub has no public model {where}. "
            "Check the spelling; for a private model log in with `hf auth login` or set HF_TOKEN."
        )
    if status in (401, 403):
        return PermissionError(
            f"The Hub refused {repo_id} ({status}): log in with `hf auth login`, or set HF_TOKEN to a token that may "
            "read it."
        )
    if status is not None:
        return ConnectionError(f"The Hub answered {status} when asked for {repo_id}: try again later.")
    if constants.HF_HUB_OFFLINE or isinstance(error, errors.OfflineModeIsEnabled):
        return ConnectionError(
            f"{repo_id} is not (wholly) in the local cache, and HF_HUB_OFFLINE forbids downloads: unset it once, or "
            "pass the path of a local copy."
        )
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return OSError(error.errno, f"{repo_id} could not be stored: {error.strerror}", error.filename)
    # The deepest cause is the plain one: the client wraps "connection refused" in several layers.
    lines = str(_causes(error)[-1]).strip().splitlines()
    reason = lines[0].rstrip(".") if lines else type(error).__name__
    return ConnectionError(
        f"{repo_id} could not be downloaded from {constants.ENDPOINT}: {reason}. Check the network, or pass the path "
        "of a local copy."
    )


def _causes(error: BaseException) -> list[BaseException]:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain
