"""Authentication of MLflow's server: its ``authorization_function``, which runs inside that server.

MLflow's assistant runs commands and edits files on the server's machine, for every user whose requests come from the
machine itself. Behind an ssh tunnel or a proxy those are all requests: every user who may read a run could run commands
as the services' own user. So the assistant is disabled for all users.
"""

from __future__ import annotations

_ASSISTANT = "/ajax-api/3.0/mlflow/assistant"


def authenticate() -> object:
    """MLflow's own check of name and password, and a refusal of every request to the assistant."""
    from flask import make_response, request
    from mlflow.server.auth import authenticate_request_basic_auth

    if request.path.startswith(_ASSISTANT):
        return make_response("The assistant is disabled: it would run commands on this server's machine.", 403)
    return authenticate_request_basic_auth()
