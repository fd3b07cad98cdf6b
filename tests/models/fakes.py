"""Fakes: a checkpoint that is cheap to open."""

import json
from pathlib import Path

from models.checkpoints.checkpoint import Checkpoint

CONFIG = {"num_attention_heads": 2, "hidden_size": 8, "num_hidden_layers": 1}

HEALTHY = """
import http.server, socketserver, sys

class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass

socketserver.UnixStreamServer(sys.argv[1], Healthy).serve_forever()
"""
"""Python that answers every health check, on the Unix socket that its first argument names; it imports sys."""


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    """Writes a safetensors file of zeros with tensors of these shapes."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    blob = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(blob).to_bytes(8, "little") + blob)
        file.truncate(8 + len(blob) + offset)  # zeros that take no room


def fake_checkpoint(folder: Path, shapes: dict[str, list[int]] | None = None) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    write_safetensors(folder / "model.safetensors", shapes or {"model.embed_tokens.weight": [5, 8]})
    return Checkpoint.open(folder)
