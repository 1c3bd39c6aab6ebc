"""The Hugging Face hub: exports are fetched from it and pushed to it."""

from __future__ import annotations

import re
from pathlib import Path

from vaelab.core.errors import UserError, require

SCHEME = "hf://"
NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
"""Pattern of the name of a repository, USER/NAME."""


def fetch(address: str) -> Path:
    """Returns the folder with the export at hf://USER/NAME or hf://USER/NAME@REVISION, from the cache if it is there.

    Raises UserError if it cannot be had.
    """
    name, _, revision = address.removeprefix(SCHEME).partition("@")
    if not NAME.fullmatch(name):
        raise UserError(f"{address}: no address of a model: write hf://USER/NAME, or hf://USER/NAME@REVISION")
    require("huggingface_hub", "hf://", "hub")
    from huggingface_hub import errors, snapshot_download

    from vaelab.runs import exported

    wanted = [exported.HUB_DESCRIPTION, exported.DESCRIPTION, exported.WEIGHTS]
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except errors.GatedRepoError:
        why = "it is given only on request: ask on its page, then hf auth login"
    except errors.RepositoryNotFoundError:
        why = "there is no such model, or it is private: check the name, or hf auth login"
    except errors.RevisionNotFoundError:
        why = "it has no such revision: leave out what stands behind the @"
    except errors.HFValidationError:
        why = "no name of a model: write hf://USER/NAME"
    except errors.LocalEntryNotFoundError:
        why = "the hub cannot be reached, and the model is not in the cache: try again with a network"
    except (errors.HfHubHTTPError, OSError) as error:
        why = f"the hub does not give it ({_first_line(error)})"
    else:
        if exported.holds_export(folder):
            return folder
        why = "the repository has no model of vaelab: vaelab export hub=USER/NAME makes one"
    raise UserError(f"{address}: {why}")


def push(folder: Path, name: str, private: bool, files: list[str]) -> str | None:
    """Uploads files of a folder to the repository USER/NAME, which is made if need be.

    private: whether one that is made is. Returns its address, or None if this machine has no token.
    Raises UserError if the hub refuses.
    """
    from huggingface_hub import HfApi, errors, get_token

    if get_token() is None:
        return None
    try:
        HfApi().create_repo(name, private=private, exist_ok=True)
        HfApi().upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=files, commit_message="Model exported by vaelab"
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise UserError(
            f"hub={name}: it could not be pushed ({_first_line(error)})\n{folder} has it: {upload_line(folder, name)}"
        ) from error
    return f"https://huggingface.co/{name}"


def upload_line(folder: Path, name: str) -> str:
    """Returns the command that pushes a folder."""
    import shlex

    return f"hf upload {name} {shlex.quote(str(folder))}"


def _first_line(error: Exception) -> str:
    from vaelab.core.terminal import cut

    return cut(next(iter(str(error).strip().splitlines()), type(error).__name__), 120)
