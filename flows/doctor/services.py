"""Verdicts of `brevity doctor` on services that a run needs: the hub, vLLM servers, language models, Prefect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from conf.llm import Llm
from conf.redaction import redacted
from flows.doctor.checks import Finding, State, Version, dotted, split_message
from models.inference.dispatcher import excerpt
from models.inference.remote_servers import model_names


class Reply(NamedTuple):
    """An HTTP reply. Status 0: there was none, and the text says why."""

    status: int
    text: str


def check_hub(models: Sequence[str], data_sets: Sequence[str], has_token: bool, is_offline: bool) -> Finding:
    """`models`: those that are not on this machine. `data_sets`: all of the hub's; a run always reads them there."""
    needed = ", ".join([*models, *data_sets])
    if not needed:
        return Finding("hub", State.OK, "nothing is needed from it")
    if is_offline:
        remedy = "unset HF_HUB_OFFLINE, or bring the models' folders and files of the problems to this machine"
        return Finding("hub", State.ERROR, f"HF_HUB_OFFLINE is set, and these are not here: {needed}", remedy)
    if not has_token:
        remedy = "if one of them is gated: accept its terms on the hub, then `hf auth login` or set HF_TOKEN"
        return Finding("hub", State.WARNING, f"no token, needed for gated ones of {needed}", remedy)
    return Finding("hub", State.OK, f"a token is there; needed: {needed}")


def check_server(url: str, served: Sequence[str] | None, fingerprint: str | None, wrong: str = "") -> Finding:
    """A server of `engine.endpoints`. `served`: names of its models; None if it is not reachable. `fingerprint`: the
    base model's; None if the model is not on this machine. `wrong`: why it cannot be used, with a remedy."""
    check = f"endpoint {redacted(url)}"
    if wrong:
        found, remedy = split_message(redacted(wrong))
        return Finding(check, State.ERROR, found, remedy)
    if served is None:
        return Finding(check, State.ERROR, "not reachable", "start the server, or correct engine.endpoints")
    names = excerpt(", ".join(served)) or "nothing"
    if fingerprint is None:
        remedy = "compare it with `brevity fingerprint MODEL --dtype DTYPE`"
        return Finding(check, State.WARNING, f"serves {names}; the base model is not here to compare", remedy)
    if fingerprint not in served:
        remedy = f"serve the base model with --served-model-name {fingerprint}"
        return Finding(check, State.ERROR, f"serves {names}, not this run's base model", remedy)
    return Finding(check, State.OK, "serves the base model")


def check_llm(llm: Llm, reply: Reply, has_key: bool) -> Finding:
    """`reply`: to a request for the list of models."""
    check, correct = f"{llm.SECTION_NAME}.url {redacted(llm.url)}", f"correct {llm.SECTION_NAME}.url"
    if reply.status == 0:
        return Finding(check, State.ERROR, f"not reachable ({reply.text})", f"start it, or {correct}")
    if reply.status in (401, 403):
        found = (
            f"refuses the key in {llm.key_variable}" if has_key else f"asks for a key; {llm.key_variable} is not set"
        )
        return Finding(check, State.ERROR, found, f"set {llm.key_variable} to a valid key")
    try:
        names = model_names(reply.text) if reply.status == 200 else None
    except ValueError:
        names = None
    if names is None:
        found = f"answers, but lists no models (status {reply.status})"
        return Finding(check, State.WARNING, found, f"{correct} if it is wrong; it usually ends in /v1")
    if not any(f"/{name}".endswith(f"/{llm.model}") for name in names):
        remedy = f"correct {llm.SECTION_NAME}.model"
        return Finding(check, State.WARNING, f"its list of models has no {llm.model}", remedy)
    return Finding(check, State.OK, f"serves {llm.model}")


def check_prefect(url: str, health: Reply, version: Reply, client: str) -> Finding:
    """`url`: PREFECT_API_URL. `client`: version of the installed Prefect."""
    where = redacted(url)
    if health.status in (401, 403):
        remedy = "set PREFECT_API_KEY or PREFECT_API_AUTH_STRING"
        return Finding("Prefect", State.ERROR, f"{where} refuses this client (status {health.status})", remedy)
    if health.status != 200:
        why = f"status {health.status}" if health.status else health.text
        remedy = (
            "start it (prefect server start), correct PREFECT_API_URL, as in http://127.0.0.1:4200/api, or unset it"
        )
        return Finding("Prefect", State.ERROR, f"{where} does not answer /health ({why})", remedy)
    server, mine = _version(version.text if version.status == 200 else ""), _version(client)
    if server is None or mine is None:
        return Finding("Prefect", State.OK, f"{where} answers; it tells no version (nor does Prefect Cloud)")
    found = f"{where} runs {dotted(server)}, the client is {dotted(mine)}"
    if server[0] != mine[0]:
        return Finding("Prefect", State.ERROR, f"{found}: they do not work together", f"use a server of {mine[0]}.x")
    if server < mine:
        return Finding("Prefect", State.WARNING, f"{found}: older", f"update the server to {dotted(mine)} or newer")
    return Finding("Prefect", State.OK, found)


def _version(text: str) -> Version | None:
    found = re.match(r'"?(\d+)\.(\d+)', text.strip())
    return (int(found[1]), int(found[2])) if found else None
