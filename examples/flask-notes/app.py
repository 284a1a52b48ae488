"""Short notes, kept in memory: a page, a JSON endpoint and a health check."""

import itertools
import os
import threading
import time

from flask import Flask, abort, jsonify, redirect, render_template, request

NOTES_MAX = 100
TEXT_MAX = 280

app = Flask(__name__)
started = time.time()
lock = threading.Lock()
numbers = itertools.count(1)
notes = [{"id": next(numbers), "text": "This note is as old as the machine's process.", "at": started}]


def add(text):
    text = (text or "").strip()
    if not text or len(text) > TEXT_MAX:
        abort(422, f"a note has 1 to {TEXT_MAX} characters")
    with lock:
        note = {"id": next(numbers), "text": text, "at": time.time()}
        notes.append(note)
        del notes[:-NOTES_MAX]
    return note


def where():
    names = {"app": "FLY_APP_NAME", "machine": "FLY_MACHINE_ID", "region": "FLY_REGION"}
    return {word: os.environ.get(name, "not told") for word, name in names.items()}


@app.get("/")
def page():
    with lock:
        latest = list(reversed(notes))
    return render_template("page.html", notes=latest, where=where(), up=int(time.time() - started))


@app.post("/")
def write():
    add(request.form.get("text"))
    return redirect("/", code=303)


@app.get("/api/notes")
def list_notes():
    with lock:
        return jsonify(notes=list(notes), **where())


@app.post("/api/notes")
def create_note():
    body = request.get_json(silent=True) or {}
    return jsonify(add(body.get("text"))), 201


@app.get("/healthz")
def healthz():
    return jsonify(status="ok")


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=int(os.environ.get("PORT", "8080")))
