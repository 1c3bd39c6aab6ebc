"""`vaelab dashboard` makes a W&B workspace, a comparison of models and a report, as JSON or in an account."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from vaelab.commands import command
from vaelab.core.errors import UserError
from vaelab.core.files import write_text

SECONDS = 15
"""Seconds to wait for the W&B server."""


class Options(NamedTuple):
    """The keys of conf/dashboard.yaml."""

    project: str
    entity: str | None
    name: str
    out: str
    upload: bool


def main(arguments: list[str]) -> int:
    """Runs `vaelab dashboard` with these arguments. Returns the exit code."""
    return command.single("dashboard", job, arguments)


def job(config: Any) -> None:
    """Hydra's job: builds the views, writes them, and makes them in the account if asked."""
    from vaelab.core.config import options

    asked = options(Options, config)
    for key in ("project", "name"):
        if not getattr(asked, key).strip():
            raise UserError(f"{key}= is empty: give it a value, or leave it out")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError('vaelab dashboard needs wandb-workspaces: pip install "vaelab[wandb]"')
    folder = _folder(asked.out)
    entity = _account(asked) if asked.upload else asked.entity or ""
    views = _views(entity, asked)
    from vaelab.report.hosted import workspace

    for name, view in views.items():
        path = folder / f"{name}.json"
        _write(path, json.dumps(workspace.content(view), indent=2, ensure_ascii=False) + "\n")
        print(f"written: {path}")
    if asked.upload:
        for name, view in views.items():
            print(f"{name}: {_saved(name, view, f'{entity}/{asked.project}')}")


def _views(entity: str, asked: Options) -> dict[str, Any]:
    from vaelab.report.hosted import workspace

    views = workspace.workspaces(entity, asked.project, asked.name)
    return views | {"report": workspace.report(entity, asked.project, asked.name)}


def _folder(out: str) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot be made ({error.strerror}): name a folder") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"out={out}: cannot be written to: name another folder")
    return folder


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    write_text(path, text)


def _account(asked: Options) -> str:
    """Returns the entity of the project. Makes the project, if there is none of that name yet.

    Raises UserError, before any view is made, if there is no account, no network or no such entity.
    """
    import wandb

    try:
        wandb.setup(wandb.Settings(silent=True))
        account = wandb.Api(timeout=SECONDS)  # looks for a key and has the server check it
        entity = asked.entity or account.default_entity or ""
        new = entity != "" and asked.project not in [project.name for project in account.projects(entity)]
        if new:
            account.create_project(asked.project, entity)
    except Exception as error:  # W&B's client raises whatever it comes across
        where = f"{asked.entity}/{asked.project}" if asked.entity else asked.project
        raise UserError(f"upload=true: {_reason(error, where)}") from error
    if not entity:
        raise UserError("upload=true: the account has no entity of its own: name a user or a team, entity=…")
    if new:
        print(f"made: the project {entity}/{asked.project}")
    return entity


def _saved(name: str, view: Any, where: str) -> str:
    """Makes the view in the account and returns its address."""
    try:
        return view.save().url
    except Exception as error:  # as above
        raise UserError(f"upload=true: the {name} was not made: {_reason(error, where)}") from error


def _reason(error: Exception, where: str) -> str:
    """Words an error of W&B's client, and what to do about it, in one line."""
    message = (str(error).strip().splitlines() or [type(error).__name__])[0]
    answer = getattr(error.__cause__ or error, "response", None)
    status = getattr(answer, "http_status", None)
    if "API key" in message or "logged in" in message:
        return "there is no W&B key: run wandb login first, or leave upload out"
    if "did not respond" in message or "no message" in message:
        return f"W&B cannot be reached ({message}): look at the network, or leave upload out"
    if status == 401 or "credentials" in message:
        return f"W&B does not take the key ({message}): run wandb login --relogin"
    return f"W&B refuses {where} ({message}): name one that is yours, entity=… project=…"
