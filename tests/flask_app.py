"""Flask applications with Flask-Session, one for each way to set it up: the other side of tests/flask_live.rs.

Run as: flask_app.py PORT redis|memcached STORE_PORT
Each application is mounted under its own name, as in /signed-json-permanent/get/user.
"""

import datetime
import itertools
import json
import sys

from flask import Flask, flash, get_flashed_messages, session
from flask_session import Session
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import run_simple

SECRET_KEY = "the secret key of the Flask application"
LIFETIME = 1000

port, store, store_port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])


def client():
    if store == "redis":
        import redis

        return redis.Redis(port=store_port)
    import pymemcache

    # By default this client does not wait until memcached has taken a value.
    return pymemcache.Client(("127.0.0.1", store_port), default_noreply=False)


def application(signed, serialization, permanent, refresh):
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=SECRET_KEY,
        SESSION_TYPE=store,
        SESSION_REDIS=client() if store == "redis" else None,
        SESSION_MEMCACHED=client() if store == "memcached" else None,
        SESSION_USE_SIGNER=signed,
        SESSION_SERIALIZATION_FORMAT=serialization,
        SESSION_PERMANENT=permanent,
        SESSION_REFRESH_EACH_REQUEST=refresh,
        SESSION_COOKIE_PATH="/",
        PERMANENT_SESSION_LIFETIME=datetime.timedelta(seconds=LIFETIME),
    )
    Session(app)

    @app.get("/set/<key>/<value>")
    def set_value(key, value):
        session[key] = json.loads(value)
        return "set"

    @app.get("/get/<key>")
    def get_value(key):
        return json.dumps(session.get(key))

    @app.get("/all")
    def all_values():
        return json.dumps(dict(session), sort_keys=True, default=repr)

    @app.get("/add")
    def add():
        session["n"] = session.get("n", 0) + 1
        return str(session["n"])

    @app.get("/odd")
    def odd():
        """Values that JSON has no form for, and Rust no type."""
        session["odd"] = {
            "at": datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc),
            "bytes": b"\x00\xff",
            "deep": [[1, [2.5, None, {"k": "é"}]]],
            "big": 2**63,
        }
        return repr(session["odd"])

    @app.get("/show-odd")
    def show_odd():
        return repr(session.get("odd"))

    @app.get("/flash/<text>")
    def flash_text(text):
        flash(text, "info")
        return "flashed"

    @app.get("/flashes")
    def flashes():
        return json.dumps(get_flashed_messages(with_categories=True))

    @app.get("/permanent")
    def is_permanent():
        return json.dumps(session.permanent)

    @app.get("/untouched")
    def untouched():
        return "ok"

    @app.get("/regenerate")
    def regenerate():
        app.session_interface.regenerate(session)
        return "regenerated"

    @app.get("/logout")
    def logout():
        session.clear()
        return "out"

    return app


mounts = {}
for signed, serialization, permanent in itertools.product(
    (False, True), ("msgpack", "json"), (True, False)
):
    name = "-".join(
        (
            "signed" if signed else "plain",
            serialization,
            "permanent" if permanent else "browser",
        )
    )
    mounts[f"/{name}"] = application(signed, serialization, permanent, refresh=False)
mounts["/refreshing"] = application(False, "msgpack", True, refresh=True)

run_simple("127.0.0.1", port, DispatcherMiddleware(Flask("root"), mounts), threaded=True)
