"""Compares the tokens that `main.rs` beside this file wrote with those of llama.cpp.

Usage: check.py DIRECTORY LLAMA_SERVER. Starts the server on each model of the directory; prints the texts that differ, and fails if one
does.
"""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ADDRESS = "127.0.0.1"
PORT = 18_431
START_S = 60


def ask(path: str, body: dict | None = None) -> dict:
    """An answer of the server."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{ADDRESS}:{PORT}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait(server: subprocess.Popen) -> None:
    """Until the model is loaded."""
    for _ in range(START_S * 5):
        if server.poll() is not None:
            sys.exit(f"the server ended with status {server.returncode}")
        try:
            ask("/health")
            return
        except OSError:
            time.sleep(0.2)
    sys.exit(f"the server did not start within {START_S} s")


def differences(model: Path, program: str) -> int:
    """How many texts of one model differ."""
    arguments = [program, "--model", str(model), "--host", ADDRESS, "--port", str(PORT), "--no-warmup", "-c", "64"]
    server = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(server)
        ours = json.loads(model.with_suffix(".tokens.json").read_text())
        differ = 0
        for entry in ours:
            request = {"content": entry["text"], "add_special": False, "parse_special": False}
            theirs = ask("/tokenize", request)["tokens"]
            if theirs != entry["ids"]:
                differ += 1
                print(f"  {entry['text']!r}\n    ours   {entry['ids']}\n    theirs {theirs}")
        print(f"{model.name}: {len(ours)} texts, {differ} differ")
        return differ
    finally:
        server.terminate()
        server.wait()


def main() -> int:
    models = sorted(Path(sys.argv[1]).glob("*.gguf"))
    return int(sum(differences(model, sys.argv[2]) for model in models) > 0 or not models)


if __name__ == "__main__":
    sys.exit(main())
