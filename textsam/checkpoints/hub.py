"""Files from and to the Hugging Face Hub, and in plain words why that failed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class HubOptions:
    """Where files of the Hub come from.

    Attributes:
        revision: a branch, a tag or a commit; None: the main branch.
        cache_dir: None: the client's own (HF_HOME).
        local_files_only: take what is in the cache, and ask nobody.
        token: None: the client's own (HF_TOKEN, or `hf auth login`).
    """

    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    token: str | bool | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> HubOptions:
        """Those of many options that are for the Hub."""
        return cls(**{field.name: options[field.name] for field in fields(cls) if options.get(field.name) is not None})


def is_repo_id(name: str) -> bool:
    """Whether `name` has the form of a Hub id, organisation/name."""
    return _REPO_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def download(repo_id: str, allow_patterns: Sequence[str], options: HubOptions | None = None) -> Path:
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
        return Path(snapshot_download(repo_id, allow_patterns=list(allow_patterns), **vars(options or HubOptions())))
    except Exception as error:  # The client's errors share no base class narrower than this.
        raise _explain(repo_id, error, options) from error


def upload(repo_id: str, folder: Path, *, message: str, private: bool = False, revision: str | None = None) -> str:
    """Puts all files of a folder into a repository, which is made when it does not exist; the token is the client's.

    Returns:
        The address of the repository.
    Raises:
        ValueError: `repo_id` is not of the form organisation/name.
        FileNotFoundError, PermissionError, ConnectionError, OSError: as `download`.
    """
    from huggingface_hub import HfApi

    if not is_repo_id(repo_id):
        raise ValueError(f"Expected a Hub id of the form organisation/name, got {repo_id!r}.")
    try:
        api = HfApi()
        address = str(api.create_repo(repo_id, private=private, exist_ok=True))
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision)
    except Exception as error:  # as above
        raise _explain(repo_id, error, upload=True) from error
    return address


def _explain(repo_id: str, error: Exception, options: HubOptions | None = None, *, upload: bool = False) -> OSError:
    from huggingface_hub import constants, errors

    where = f"{constants.ENDPOINT}/{repo_id}"
    answer = next((each for each in _causes(error) if isinstance(each, errors.HfHubHTTPError)), None)
    status = None if answer is None else answer.response.status_code
    if isinstance(answer, errors.GatedRepoError):
        return PermissionError(
            f"{repo_id} is gated: accept its terms on {where}, then log in with `hf auth login` or set HF_TOKEN."
        )
    if isinstance(answer, errors.RevisionNotFoundError):
        asked = options.revision if options else None
        return FileNotFoundError(f"{repo_id} has no branch, tag or commit {asked!r}: see {where}/tree/main.")
    if upload and status in (401, 403):
        return PermissionError(
            f"The Hub does not let this account write {repo_id} ({status}): log in with `hf auth login`, or set "
            "HF_TOKEN to a token that may write it."
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
    if upload and (constants.HF_HUB_OFFLINE or isinstance(error, errors.OfflineModeIsEnabled)):
        return ConnectionError(f"{repo_id} could not be pushed: HF_HUB_OFFLINE forbids it; unset it.")
    if options is not None and options.local_files_only:
        at = f" at revision {options.revision!r}" if options.revision else ""
        return ConnectionError(
            f"{repo_id}{at} is not (wholly) in the local cache, and local_files_only forbids downloads: leave it out "
            "once."
        )
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
    if upload:
        return ConnectionError(f"{repo_id} could not be pushed to {constants.ENDPOINT}: {reason}. Check the network.")
    return ConnectionError(
        f"{repo_id} could not be downloaded from {constants.ENDPOINT}: {reason}. Check the network, or pass the path "
        "of a local copy."
    )


def _causes(error: BaseException) -> list[BaseException]:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain
